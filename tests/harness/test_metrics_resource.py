"""The model of cost: what it refuses, and how its interval behaves under noise."""

import math

import numpy as np
import pytest

from harness.metrics import known_answers_resource as planted
from harness.metrics.resource import ResourceError, predict_memory, predict_speed

LADDER = [planted.size(*shape) for shape in planted.SHAPES]
TARGET = planted.size(*planted.TARGET)


def test_three_sizes_are_refused():
    with pytest.raises(ResourceError, match="3 sizes"):
        predict_memory(LADDER[:3], [planted.planted_memory(s) for s in LADDER[:3]], TARGET)


def test_no_coefficient_is_negative_whatever_was_measured():
    # memory that falls with size: the fit must not promise that a larger model needs less
    falling = [s.fixed_bytes + 3e8 - 0.5 * s.saved_bytes for s in LADDER]
    forecast = predict_memory(LADDER, falling, TARGET)

    assert min(forecast.coefficients.values()) >= 0
    assert forecast.value >= TARGET.fixed_bytes + TARGET.state_bytes


def test_speed_and_time_are_reciprocal_and_the_interval_holds_the_value():
    forecast = predict_speed(LADDER, planted._off(LADDER, 0.05), TARGET)

    assert 0 < forecast.low < forecast.value < forecast.high


def test_the_interval_covers_noisy_truth_about_as_often_as_it_says():
    # made from errors of extrapolation, it is wider than 90 % would need; one that misses often would be worthless
    rng = np.random.default_rng(3)
    truth, covered = planted.planted_speed(TARGET), []
    for _ in range(200):
        noisy = [planted.planted_speed(s) * math.exp(0.03 * rng.standard_normal()) for s in LADDER]
        forecast = predict_speed(LADDER, noisy, TARGET)
        covered.append(forecast.low <= truth <= forecast.high)

    assert np.mean(covered) >= 0.85
