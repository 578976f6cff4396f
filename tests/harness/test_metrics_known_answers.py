"""The known answers hold, are fast, and fail when the metric behind them is broken."""

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness import known_answers_stop, monitors
from harness.metrics import (
    balance,
    entropy,
    gradients,
    known_answers_balance,
    known_answers_entropy,
    known_answers_state,
    known_answers_trend,
    spectrum,
    state,
    trend,
)

MODULES = (
    known_answers_entropy,
    known_answers_trend,
    known_answers_state,
    known_answers_balance,
    known_answers_stop,
)


def registered(module):
    from harness.known_answers import _registry

    return [entry.function for entry in _registry.values() if entry.function.__module__ == module.__name__]


KNOWN_ANSWERS = [function for module in MODULES for function in registered(module)]


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_together_they_take_less_than_a_second():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()

    assert time.process_time() - started < 1


true_share, true_erank = entropy.entropy_share, spectrum.effective_rank
true_shares, true_loss_trend = balance.activation_shares, trend.loss_trend
true_innovation, true_norm = state.innovation, gradients.gradient_norm
true_sensitivity = state.input_sensitivity


def mean_of_norms(parameters):
    """The other estimator of old: 0 where it should be, but a mean over tensors."""
    return torch.stack([p.grad.abs().max() for p in parameters if p.grad is not None]).mean() ** 2


def uncentred_sensitivity(states, documents):
    ratio = true_sensitivity(states, documents)
    return replace(ratio, numerators=ratio.denominators)


def variance_of_each(writes, documents):
    """The old ratio of raw powers, constants included."""
    power = {branch: u.square().sum().item() for branch, u in writes.items()}
    return {branch: SimpleNamespace(value=p / sum(power.values())) for branch, p in power.items()}


class Deaf(monitors.StopMonitors):
    def observe(self, row):
        return []


class Nervous(monitors.StopMonitors):
    def observe(self, row):
        return [monitors.Event("STOP", "overfit", row["step"], "")] if row["kind"] == "eval" else []


BROKEN = [
    (known_answers_entropy, entropy, "entropy_share", lambda logits: 1.0),
    (known_answers_entropy, entropy, "entropy_share", lambda logits: true_share(logits) * math.log(logits.shape[-1])),
    (known_answers_entropy, entropy, "entropy_share", lambda logits: true_share(logits.nan_to_num())),
    (known_answers_entropy, entropy, "gaussian_init", lambda std, vocab: entropy.GaussianInit(math.log(vocab), 0.0)),
    (known_answers_entropy, entropy, "initial_loss_ratio", lambda loss, vocab: loss),
    (known_answers_trend, trend, "mann_kendall", lambda values, inflation=1.0: float(values[-1] >= values[0])),
    (known_answers_trend, trend, "autocorrelation_time", lambda values, fitted=1: 0.5),
    (known_answers_trend, trend, "loss_trend", lambda x, y, **options: true_loss_trend(x, -np.asarray(y), **options)),
    (known_answers_trend, trend, "theil_sen", lambda x, y, level=0.9, inflation=1.0: (0.0, 0.0, 0.0)),
    (known_answers_trend, gradients, "gradient_summary", lambda g, clip: gradients.GradientSummary(2.0, 1.0, 1.0)),
    (known_answers_state, state, "innovation", lambda now, before, decay: true_innovation(now, before, decay * 0 + 1)),
    (known_answers_state, state, "timescale", lambda decay: 1 / (1 + decay)),
    (known_answers_state, state, "input_sensitivity", uncentred_sensitivity),
    (known_answers_state, spectrum, "effective_rank", lambda m: true_erank(m @ m.mT)),
    (known_answers_state, spectrum, "effective_rank", lambda m: torch.full(m.shape[:-2], 4.0)),
    (known_answers_state, state, "gate_saturation", lambda logits: float((logits > 5).float().mean())),
    (known_answers_state, state, "decay_saturation", lambda decays: state.DecaySaturation(0.25, 0.0)),
    (known_answers_balance, gradients, "gradient_norm", mean_of_norms),
    (known_answers_balance, gradients, "gradient_norm", lambda parameters: torch.ones(())),
    (known_answers_balance, gradients, "median_ratio_interval", lambda a, b, seed, last: SimpleNamespace(value=1.0)),
    (known_answers_balance, gradients, "per_parameter_ratio", lambda ratio, n, m: ratio),
    (known_answers_balance, balance, "activation_shares", variance_of_each),
    (known_answers_balance, balance, "smaller_share", lambda ratio: 1 / (1 + ratio)),
    (known_answers_stop, monitors, "StopMonitors", Deaf),
    (known_answers_stop, monitors, "StopMonitors", Nervous),
]


@pytest.mark.parametrize(
    ("known", "module", "name", "broken"), BROKEN, ids=[f"{row[2]}-{index}" for index, row in enumerate(BROKEN)]
)
def test_a_broken_metric_fails_its_known_answers(monkeypatch, known, module, name, broken):
    monkeypatch.setattr(module, name, broken)

    failures = 0
    for function in registered(known):
        try:
            function()
        except AssertionError:
            failures += 1
    assert failures >= 1
