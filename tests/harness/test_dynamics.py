"""What the log of a training says of its trend: the phases of its learning rate are told apart."""

from pathlib import Path

import numpy as np
import pytest

from harness.dynamics import TrainingLog
from harness.metrics.trend import UnderpoweredError, noise_memory

STEPS = np.arange(1, 5001)
LOSSES = (
    3.4
    + 9 * STEPS**-0.5
    - 0.25 * np.maximum((STEPS - 4000) / 1000, 0) ** 0.7
    + 0.055 * np.random.default_rng(3).standard_normal(len(STEPS))
)


def log_of(rates):
    log = TrainingLog(Path("made up"), warmup_steps=100, clip_norm=1.0)
    rows = zip(STEPS.tolist(), LOSSES.tolist(), rates.tolist(), strict=True)
    vars(log)["rows"] = [{"kind": "step", "step": step, "loss": loss, "lr": lr} for step, loss, lr in rows]
    return log


def rates(decay_from):
    return np.where(STEPS <= 100, STEPS / 100, np.where(decay_from > STEPS, 1.0, (5000 - STEPS) / 1000)) * 2e-3


def test_the_noise_of_each_phase_is_measured_apart():
    after = STEPS > 100
    tau = log_of(rates(decay_from=4001)).loss_trend().tau
    assert tau == noise_memory(STEPS[after], LOSSES[after], decay_from=4001) < 1


def test_a_rate_that_never_falls_has_one_phase():
    """The same losses: without the schedule the bend is taken for memory."""
    after = STEPS > 100
    log = log_of(rates(decay_from=9999))
    assert noise_memory(STEPS[after], LOSSES[after]) > 20
    with pytest.raises(UnderpoweredError, match="remembers"):
        log.loss_trend()
