"""Readings of a training's log: planted spikes and rises are found, noise is not, and tensors of the weights count."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness import known_answers_stability as known
from harness import stability
from harness.known_answers_stop import PLANTED_LIMITS

KNOWN_ANSWERS = [
    known.planted_spikes_are_counted_exactly,
    known.noise_is_no_spike,
    known.a_planted_rise_is_the_divergence,
    known.what_is_no_number_is_counted,
    known.shares_and_deviations_of_known_numbers,
]


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.9])
def test_at_most_one_in_a_hundred_trainings_at_rest_shows_a_spike(phi, monkeypatch):
    monkeypatch.setattr(known, "PHI", phi)
    counts = [len(stability.find_spikes(known.noisy_rows(seed), PLANTED_LIMITS).first_steps) for seed in range(200)]
    assert np.count_nonzero(counts) <= 2


def test_a_rule_that_takes_the_mean_for_the_median_breaks_the_known_answer(monkeypatch):
    # negative control: the count must depend on the rule
    monkeypatch.setattr(stability.Spike, "_begins", lambda self, loss: False)
    with pytest.raises(AssertionError, match="found"):
        known.planted_spikes_are_counted_exactly()


def test_a_spike_that_comes_back_on_the_last_step_allowed_is_recovered():
    rows = known.noisy_rows(seed=5, steps=500)
    for row in rows[199:399]:
        row["loss"] += 3.0
    assert stability.find_spikes(rows, PLANTED_LIMITS).unrecovered == 0
    rows[399]["loss"] += 3.0
    assert stability.find_spikes(rows, PLANTED_LIMITS).unrecovered == 1


def test_steps_without_a_median_are_not_judged():
    rows = known.noisy_rows(seed=6, steps=101)
    rows[50]["loss"] += 9
    assert stability.find_spikes(rows, PLANTED_LIMITS).judged_steps == 0


def test_a_tensor_of_the_final_weights_counts_once(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"sound": torch.ones(3), "broken": torch.tensor([1.0, math.nan, math.inf])}, path)
    assert stability.count_non_finite([], path) == 1


def test_one_seed_has_no_deviation():
    with pytest.raises(ValueError, match="at least two"):
        stability.seed_deviation([6.1])


def test_the_interval_of_the_deviation_covers_nine_in_ten():
    generator = np.random.default_rng(3)
    covered = [low <= 0.02 <= high for _, (low, high) in
               (stability.seed_deviation(generator.normal(6, 0.02, 3)) for _ in range(2000))]  # fmt: skip
    assert abs(np.mean(covered) - 0.9) < 0.02
