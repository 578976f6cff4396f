"""What the training loop does differently on a GPU: rows read late, bfloat16, the GPU's random state."""

import math
import signal

import pytest
import torch
from toy import Poison, SignalPatch, toy_config, toy_train

from harness.runlog import read_rows
from harness.train import _CUDA_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CONFIG = toy_config({"steps": 60, "save_every": 50, "warmup_steps": 5}) if torch.cuda.is_available() else None


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    model, _ = toy_train(directory, config=CONFIG, device="cuda")
    return directory, model


def test_every_step_is_logged_in_order(straight):
    directory, _ = straight
    (header,) = read_rows(directory, "header")
    assert header["dtype"] == "bfloat16"
    assert [row["step"] for row in read_rows(directory, "step")] == list(range(1, 61))
    evaluations = read_rows(directory, "eval")
    assert [row["step"] for row in evaluations] == list(range(0, 61, 4))
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]


@pytest.mark.parametrize("step", [2, 30])
def test_an_interrupted_training_goes_on_bit_equal(straight, tmp_path, step):
    directory, model = straight
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, config=CONFIG, device="cuda", patch=SignalPatch(step, signal.SIGINT))
    resumed, _ = toy_train(tmp_path, config=CONFIG, device="cuda")
    assert (tmp_path / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_divergence_is_dated_to_its_step_though_it_is_read_later(tmp_path):
    # evaluations read the rows too, so they are put out of the way
    config = toy_config({"steps": 60, "warmup_steps": 5}).model_copy(
        update={"eval": CONFIG.eval.model_copy(update={"every_steps": 50})}
    )
    assert _CUDA_ROWS > 10
    _, outcome = toy_train(tmp_path, config=config, device="cuda", patch=Poison(8, math.inf))
    assert (outcome.status, outcome.steps, outcome.reason) == ("diverged", 8, "grad_norm is inf at step 9")
    assert [row["step"] for row in read_rows(tmp_path, "step")] == list(range(1, 10))
