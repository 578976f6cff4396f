"""What a user gets wrong ends in one message, what, where, what was allowed, what to do, and exit code 4."""

import pytest
import torch
from safetensors.torch import save_file
from suite_runner import run_suites

from models import get_model

FACTORIES = """
def raises(scale, vocab_size):
    raise RuntimeError("no weights today")

def wrong(scale, vocab_size):
    return "a string"
"""


@pytest.fixture
def refused(store, tmp_path):
    def run(*arguments: str) -> str:
        done = run_suites(store, tmp_path / "report", *arguments)
        assert done.exit_code == 4, done.output
        assert done.report == {}
        assert done.output.count("ERROR:") == 1
        assert "Traceback" not in done.output
        return done.output

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "GF-HM"), "Did you mean"),
        (("--model", "mutant:acausl"), "Did you mean mutant:acausal?"),
        (("--model", "nowhere.py:factory"), "there is no file"),
        (("--model", "8M"), "give -m small"),
        (("-m", "tinny"), "did you mean tiny?"),
        (("-m", "tiny or small"), "a run measures one"),
        (("--corpus", "stou"), "did you mean sotu?"),
        (("--set", "train.stepz=5"), "Did you mean train.steps?"),
        (("--set", "train.steps=many"), "should be a valid integer"),
        (("--explain", "G9"), "Known: G0"),
        (("--seeds", "0"), "at least 1"),
        (("--checkpoint", "nowhere.safetensors"), "there is no such file"),
        (("--modle", "GF-MH"), "unrecognized arguments: --modle"),
        (("--graduate", "3.5M"), "chooses its own suites, and -m tiny, suites/gates would leave evidence out"),
        (("--waivers", "waivers.toml"), "--waivers belongs to --graduate SCALE"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"some text\x00and a NUL", "NUL byte at offset 9"),
        (b"far too short", "too short"),
        ("a legal start \xff".encode("latin1"), "UTF-8"),
    ],
)
def test_a_corpus_that_cannot_serve_is_refused_before_any_check(refused, tmp_path, content, said):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content)
    assert said in refused("--corpus", str(corpus))


@pytest.mark.slow
def test_a_corpus_shorter_than_a_window_is_refused_with_the_way_out(refused, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"Paragraph {n} of a text that has words in it." for n in range(60)))
    assert "give" in refused("--corpus", str(corpus), "--set", "data.vocab_size=300").lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [("raises", "raised RuntimeError: no weights today"), ("wrong", "returned str"), ("absent", "defines no absent")],
)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_factory_that_does_not_work_is_refused(refused, tmp_path, name, said, workers):
    source = tmp_path / "mine.py"
    source.write_text(FACTORIES)
    assert said in refused("--model", f"{source}:{name}", "-n", workers)


@pytest.mark.slow
def test_a_checkpoint_of_something_else_is_refused(refused, tmp_path):
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"not a checkpoint")
    assert "model.safetensors" in refused("--checkpoint", str(damaged))


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_is_refused(refused, tmp_path):
    weights = {name: tensor.clone() for name, tensor in get_model("CP", vocab_size=512).state_dict().items()}
    weights["embedding.weight"][3, 5] = float("nan")
    weights = {name: tensor for name, tensor in weights.items() if name != "head.weight"}
    save_file(weights, tmp_path / "nan.safetensors")
    said = refused("--model", "CP", "--checkpoint", str(tmp_path / "nan.safetensors"), "--set", "data.vocab_size=512")
    assert "weights that are not finite" in said
    assert "embedding.weight" in said


@pytest.mark.slow
@pytest.mark.parametrize(("untrained", "status"), [(True, "INVALID"), (False, "PASS")])
def test_untrained_weights_are_not_taken_for_trained_ones(store, tmp_path, untrained, status):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_model("MAMBA2")
    if not untrained:
        with torch.no_grad():
            model.embedding.weight.mul_(1.01)
    weights = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    run = run_suites(
        store, tmp_path / "report", "-k", "g3_5 and moves", "--model", "MAMBA2", "--checkpoint", str(weights)
    )

    assert run.status("G3.5") == status, run.output
    assert ("untrained weights of seed 3" in run.output) == untrained
