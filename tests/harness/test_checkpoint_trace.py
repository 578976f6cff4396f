"""The same documents traced at each kept step of a training, and the model given back as it was."""

import pytest
import torch
from toy import VOCAB, toy_config, toy_dataset

from harness.checkpoint import CheckpointError, load_weights
from harness.checkpoint_trace import over_checkpoints, trace_checkpoints
from harness.probe_row import probe_row
from harness.runtime import seeded
from harness.state_probe import sample_states
from harness.trace import state_after
from harness.train import train
from harness.training_files import checkpoint_directory, checkpoint_steps
from models import get_model


def fresh():
    with seeded(3):
        return get_model("GF-MH", scale="3.5M", vocab_size=VOCAB)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    steps = {"steps": 6, "batch_tokens": {"cpu": 32, "cuda": 32}, "warmup_steps": 2, "checkpoint_steps": [2, 4]}
    train(fresh(), toy_dataset(), toy_config(steps), directory, seed=3, device="cpu")
    return directory


@pytest.fixture(scope="module")
def windows():
    return toy_dataset().validation_windows(16, 6)


def test_each_step_is_seen_with_its_own_weights(directory, windows):
    found = trace_checkpoints(directory, fresh(), windows, device="cpu")
    assert list(found) == checkpoint_steps(directory) == [2, 4, 6]
    for step, row in found.items():
        alone = fresh().eval()
        load_weights(checkpoint_directory(directory, step), alone)
        assert row == probe_row(sample_states(alone, windows, device="cpu"))
    assert found[2]["gate_mean"] != found[4]["gate_mean"] != found[6]["gate_mean"]


def test_the_rms_is_that_of_the_true_state(directory, windows):
    row = trace_checkpoints(directory, fresh(), windows, device="cpu")[6]
    model = fresh()
    load_weights(checkpoint_directory(directory, 6), model)
    ((inputs_BT, _, _),) = windows.batches(16)
    state = state_after(model, torch.from_numpy(inputs_BT.astype("int64")))
    for path, tensor in state.long_items():
        rms_H = tensor.double().square().mean((0, 2, 3)).sqrt()
        assert row["state_rms"][path.branch][path.layer] == pytest.approx(rms_H.tolist(), rel=1e-5)


def test_the_model_comes_back_as_it_was_even_after_an_error(directory):
    model, reference = fresh(), fresh()
    model.train()

    def fail(seen):
        assert not seen.training
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        over_checkpoints(directory, model, fail)
    assert model.training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))


def test_a_training_without_kept_weights_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="kept no weights"):
        over_checkpoints(tmp_path, fresh(), lambda model: 0)
