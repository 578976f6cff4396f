"""Looks inside a model in training: when they come, what their rows hold, and that they change nothing."""

import gc
import math
import signal

import pytest
import torch
from torch import nn
from toy import VOCAB, Poison, SignalPatch, toy_config, toy_dataset, toy_probe, toy_train

from fixtures.training import state_probe, stop_monitors
from harness.config import RunConfig
from harness.runlog import read_rows
from harness.runtime import seeded
from harness.train import train
from harness.training_job import NO_PATCH
from models import get_model

PROBED = ("state_rms", "state_rho", "erank")


def probed_steps(directory) -> list[int]:
    return [row["step"] for row in read_rows(directory, "probe")]


@pytest.mark.parametrize(
    ("every", "warmup", "expected"),
    [(5, 5, [5, 10, 15, 20]), (6, 4, [4, 6, 12, 18, 20]), (1000, 7, [7, 20]), (1000, 0, [20])],
)
def test_probes_come_on_their_schedule_after_the_warm_up_and_at_the_end(tmp_path, every, warmup, expected):
    toy_train(tmp_path, config=toy_config({"warmup_steps": warmup}, {"probe_every": every}))
    assert probed_steps(tmp_path) == expected


def test_a_probe_row_follows_the_evaluation_of_its_step_and_comes_back_as_it_was(tmp_path):
    seen = []

    def probe(model):
        seen.append({"kind": "probe", "step": 5 * (len(seen) + 1), **toy_probe(model)})
        return {key: value for key, value in seen[-1].items() if key not in ("kind", "step")}

    toy_train(tmp_path, probe=probe)
    assert read_rows(tmp_path, "probe") == seen
    kinds = [row["kind"] for row in read_rows(tmp_path) if row["step" if "step" in row else "seed"] == 20]
    assert kinds == ["step", "eval", "probe", "final_eval"]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_probes_change_no_bit_of_the_training(tmp_path):
    config = toy_config(monitors={"probe_every": 1})
    probed, _ = toy_train(tmp_path / "probed", config=config)
    alone, _ = toy_train(tmp_path / "alone", config=config, probe=None)
    assert same(probed, alone)
    for kind in ("step", "eval", "final_eval"):
        assert read_rows(tmp_path / "probed", kind) == read_rows(tmp_path / "alone", kind)


def test_the_comparison_sees_a_probe_that_does_change_something(tmp_path):
    def meddling(model):
        with torch.no_grad():
            model.mixer.bias += 1e-6
        return {}

    config = toy_config(monitors={"probe_every": 1})
    alone, _ = toy_train(tmp_path / "alone", config=config, probe=None)
    assert not same(toy_train(tmp_path / "meddling", config=config, probe=meddling)[0], alone)


def test_a_probe_sees_eval_mode_builds_no_graph_and_may_draw_at_random(tmp_path):
    found = []

    def probe(model):
        torch.rand(3)
        assert model(torch.zeros(1, 4, dtype=torch.long)).grad_fn is None
        found.append((model.training, torch.is_grad_enabled(), all(p.grad is None for p in model.parameters())))
        return {}

    drawn, _ = toy_train(tmp_path / "drawn", probe=probe)
    assert set(found) == {(False, False, True)}
    assert drawn.training
    assert same(drawn, toy_train(tmp_path / "alone", probe=None)[0])


# --- on a model of the registry ---------------------------------------------------------------------------------------


def hybrid_config(**monitors) -> RunConfig:
    return toy_config(
        {"steps": 6, "batch_tokens": {"cpu": 32, "cuda": 32}, "warmup_steps": 2, "lr": 2e-3},
        {"probe_every": 2, **monitors},
    )


def hybrid_train(directory, *, name="GF-MH", patch=NO_PATCH, probed=True, spy=None, **options):
    config = hybrid_config()
    with seeded(3):
        model = get_model(name, scale="3.5M", vocab_size=VOCAB)
    probe = state_probe(model, toy_dataset(), config, "cpu") if probed else None
    if spy is not None:
        probe = spy(probe)
    train(model, toy_dataset(), config, directory, seed=3, device="cpu", patch=patch, probe=probe, **options)
    return model


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hybrid")
    return directory, hybrid_train(directory, monitors=[stop_monitors()])


def test_a_hybrid_shows_states_writes_and_gates_by_layer(hybrid):
    rows = read_rows(hybrid[0], "probe")
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert row["share_rwkv"] + row["share_mamba"] == pytest.approx(1)
        assert 0 < row["rho_rwkv"] < 1
        assert len(row["gate_mean"]) == len(row["gate_saturation"]) == 4
        assert all(0 < gate < 1 for gate in row["gate_mean"])
        for key in (*PROBED, "decay_mean", "innovation"):
            assert sorted(row[key]) == ["mamba", "rwkv"]
            assert all(len(layers) == 4 for layers in row[key].values())
        assert {len(heads) for layers in row["state_rms"].values() for heads in layers} == {4}
        assert all(1 <= rank <= 64 for layers in row["erank"].values() for rank in layers)


def test_probing_a_hybrid_changes_no_bit(hybrid, tmp_path):
    directory, model = hybrid
    assert same(model, hybrid_train(tmp_path, probed=False))
    assert read_rows(tmp_path, "step") == read_rows(directory, "step")


def test_an_interrupted_hybrid_goes_on_with_the_same_probe_rows(hybrid, tmp_path):
    # after updates 2 (0-based 1) and 4 the probe is still due
    for step in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            hybrid_train(tmp_path, patch=SignalPatch(step, signal.SIGINT), monitors=[stop_monitors()])
    hybrid_train(tmp_path, monitors=[stop_monitors()])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (hybrid[0] / "metrics.jsonl").read_bytes()


def test_no_graph_outlives_a_probe(tmp_path):
    def graphs() -> int:
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.grad_fn is not None)

    counts = []

    def spy(probe):
        def counted(model):
            before = graphs()
            row = probe(model)
            counts.append((before, graphs()))
            return row

        return counted

    hybrid_train(tmp_path, spy=spy)
    assert len(counts) == 3
    assert all(after == before for before, after in counts), counts


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_diverging_model_gives_a_row_of_nan_and_not_an_error(tmp_path, poison):
    class Broken(Poison):
        def after_step(self, model, step):
            if step == self.at:
                with torch.no_grad():
                    model.layers[1].mixers["mamba"].in_proj.weight.fill_(poison)

    # poisoned by the update before the probe at step 2; the loss of step 3 ends the run
    hybrid_train(tmp_path, patch=Broken(1, None), monitors=[stop_monitors()])
    (row,) = read_rows(tmp_path, "probe")
    assert row["step"] == 2
    assert math.isnan(row["rho_mamba"])
    assert math.isnan(row["dead_mamba"])
    assert math.isnan(row["erank"]["mamba"][1])
    assert math.isfinite(row["erank"]["mamba"][0]), "the layer below is sound"
    assert [e.criterion for e in stop_monitors().observe(row | {"step": 5})] == ["collapse", "collapse"]


def test_a_model_without_decays_shows_its_cache(tmp_path):
    hybrid_train(tmp_path, name="GPT2")
    row = read_rows(tmp_path, "probe")[-1]
    assert sorted(row["state_rms"]) == ["attention.k", "attention.v"]
    assert not {"gate_mean", "decay_mean", "innovation", "share_attention"} & set(row)


def test_a_model_without_states_has_no_probe():
    class Plain(nn.Module):
        def forward(self, tokens_BT):
            return tokens_BT

    assert state_probe(Plain(), toy_dataset(), toy_config(), "cpu") is None


class Recorder:
    def __init__(self):
        self.notes = {}

    def begin(self, total, done):
        pass

    def update(self, step, note):
        self.notes[step] = note

    def end(self):
        pass


def test_the_progress_line_says_what_the_last_probe_saw(tmp_path):
    recorder = Recorder()
    toy_train(tmp_path, progress=recorder)
    row = read_rows(tmp_path, "probe")[0]
    assert recorder.notes[5].startswith("loss ")
    assert "rho" not in recorder.notes[5], "the probe of a step comes after it"
    assert recorder.notes[6].endswith(f", rwkv rho {row['rho_rwkv']:.2f}, gate .25".replace("rho 0.", "rho ."))
