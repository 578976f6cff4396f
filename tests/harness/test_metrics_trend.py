import math

import numpy as np
import pytest
from scipy import stats

from harness.metrics.known_answers_trend import STEPS, ar1
from harness.metrics.trend import (
    MIN_BLOCKS,
    UnderpoweredError,
    autocorrelation_time,
    detrend,
    hamed_rao_inflation,
    kendall_variance,
    loss_trend,
    mann_kendall,
    noise_memory,
    theil_sen,
)


def p_values(series, decay_from=None):
    """One p-value a row; NaN, which is no alarm, for a row that is refused."""
    values = []
    for row in series:
        try:
            values.append(loss_trend(STEPS, row, decay_from=decay_from).p_value)
        except UnderpoweredError:
            values.append(math.nan)
    return np.array(values)


def test_noise_too_persistent_for_its_length_is_mostly_refused():
    """At phi = .98 a thousand steps hold ten independent stretches: no test can tell, so this one refuses."""
    refused = np.isnan(p_values(ar1(np.random.default_rng(29), 200, len(STEPS), 0.98)))

    assert refused.mean() > 0.8


@pytest.mark.parametrize("decay_from", [None, 901], ids=["one phase", "two phases"])
@pytest.mark.parametrize(("phi", "runs"), [(0.0, 500), (0.5, 500), (0.9, 1500)])
def test_trendless_noise_is_rarely_called_a_fall(phi, runs, decay_from):
    """At most .07 of trendless AR(1) runs at level .05: the rate over 4000 runs is .048, .054 and .063."""
    alarms = np.mean(p_values(ar1(np.random.default_rng(30), runs, len(STEPS), phi), decay_from) < 0.05)

    assert alarms <= 0.07


def test_without_blocks_the_same_noise_is_called_a_fall_often():
    """Negative control: what the block rule protects against."""
    series = ar1(np.random.default_rng(31), 200, len(STEPS), 0.9)

    assert np.mean([mann_kendall(row[::5]) < 0.05 for row in series]) > 0.15
    assert np.mean([row[-100:].mean() < row[:100].mean() for row in series]) > 0.4


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_an_injected_fall_is_found_and_its_slope_recovered(phi):
    noise = 0.15 * ar1(np.random.default_rng(32), 100, len(STEPS), phi)
    results = [loss_trend(STEPS, 6 - 0.4 * np.log(STEPS) + row) for row in noise]

    assert np.mean([r.p_value < 0.01 for r in results]) > 0.9
    assert np.mean([r.slope for r in results]) == pytest.approx(-0.4, abs=0.01)
    assert np.mean([r.slope_ci[0] <= -0.4 <= r.slope_ci[1] for r in results]) >= 0.8


@pytest.mark.parametrize(
    "curve",
    [5.6 + 9 * STEPS**-0.5, 5.9 + 2 * np.exp(-STEPS / 150), 5.6 + 9 * STEPS**-0.5 - 0.25 * (STEPS > 880)],
    ids=["power law", "exponential", "cool-down"],
)
def test_the_curvature_of_a_learning_curve_does_not_pass_for_memory(curve):
    """A curve that is not straight in log(step) must not cost its run the verdict."""
    result = loss_trend(STEPS, curve + 0.15 * ar1(np.random.default_rng(33), 1, len(STEPS), 0.3)[0])

    assert result.blocks == 20
    assert result.p_value < 0.01


@pytest.mark.parametrize("decay_from", [103, 1098, 5000], ids=["at once", "at the end", "never reached"])
def test_a_phase_too_short_for_a_parabola_is_part_of_the_other(decay_from):
    noise = ar1(np.random.default_rng(38), 1, len(STEPS), 0.5)[0]

    assert noise_memory(STEPS, noise, decay_from) == noise_memory(STEPS, noise)


def test_blocks_are_five_autocorrelation_times_long_and_cover_the_end():
    result = loss_trend(STEPS, ar1(np.random.default_rng(34), 1, len(STEPS), 0.93)[0])

    assert result.block_len >= 5 * result.tau
    assert MIN_BLOCKS <= result.blocks == len(STEPS) // result.block_len


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_ar1_noise(phi):
    noise = ar1(np.random.default_rng(35), 1, 100_000, phi)[0]

    assert autocorrelation_time(noise) == pytest.approx(0.5 + phi / (1 - phi), rel=0.1)


def test_taking_out_a_trend_does_not_hide_the_memory():
    """A fitted curve takes part of the memory with it; at 1000 steps and phi = .9 a quarter, if not allowed for."""
    noise = ar1(np.random.default_rng(28), 300, len(STEPS), 0.9)

    corrected = [autocorrelation_time(detrend(STEPS, row), fitted=3) for row in noise]
    plain = [autocorrelation_time(detrend(STEPS, row), fitted=0) for row in noise]

    assert np.median(corrected) == pytest.approx(9.5, rel=0.1)
    assert np.median(plain) < 0.85 * 9.5


def test_alternating_and_constant_series_count_as_white():
    assert autocorrelation_time(np.tile([1.0, -1.0], 100)) == 0.5
    assert autocorrelation_time(np.ones(50)) == 0.5


def test_theil_sen_agrees_with_scipy_without_ties():
    rng = np.random.default_rng(36)
    x, y = np.sort(rng.uniform(size=25)), rng.standard_normal(25)

    slope, low, high = theil_sen(x, y, level=0.9)

    expected = stats.theilslopes(y, x, alpha=0.9)
    assert slope == pytest.approx(expected.slope)
    # scipy rounds the ranks to the nearest pair, here they are rounded outwards
    assert low <= expected.low_slope
    assert expected.high_slope <= high
    assert high - low < 1.2 * (expected.high_slope - expected.low_slope)


def test_an_interval_wider_than_all_slopes_is_unbounded():
    _, low, high = theil_sen([0, 1, 2], [0, 1, 3], level=0.99)

    assert (low, high) == (-math.inf, math.inf)


def test_variance_counts_ties():
    assert kendall_variance(np.arange(10)) == pytest.approx(125)
    # one group of ten: nothing is left to vary
    assert kendall_variance(np.ones(10)) == 0
    # Kendall: n = 4 with one pair tied, (4*3*13 - 2*1*9) / 18
    assert kendall_variance([1, 1, 2, 3]) == pytest.approx((156 - 18) / 18)


def test_p_value_agrees_with_kendalls_tau_in_scipy():
    rng = np.random.default_rng(37)
    y = rng.standard_normal(30) - 0.05 * np.arange(30)

    expected = stats.kendalltau(np.arange(30), y, alternative="less", method="asymptotic").pvalue

    # scipy leaves out the continuity correction, which moves z by 1 / sqrt(var)
    z = stats.norm.ppf(expected) + 1 / math.sqrt(kendall_variance(y))
    assert mann_kendall(y) == pytest.approx(stats.norm.cdf(z), rel=1e-6)


def test_persistent_noise_inflates_the_variance_and_white_noise_rarely_does():
    x = np.arange(40.0)
    persistent = [hamed_rao_inflation(x, row) for row in ar1(np.random.default_rng(38), 50, 40, 0.7)]
    white = [hamed_rao_inflation(x, row) for row in ar1(np.random.default_rng(39), 50, 40, 0.0)]

    assert np.median(persistent) > 1.5
    assert np.median(white) < 1.3
    assert min(white) >= 1


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        (np.arange(1, 20), np.zeros(19), "too few"),
        (np.arange(1, 151), ar1(np.random.default_rng(8), 1, 150, 0.95)[0], "independent blocks"),
        (np.arange(1, 201), np.r_[np.zeros(100), math.nan, np.zeros(99)], "nan at index 100"),
    ],
    ids=["short", "persistent", "not finite"],
)
def test_what_cannot_be_judged_is_refused(steps, losses, message):
    with pytest.raises(UnderpoweredError, match=message):
        loss_trend(steps, losses)


def test_steps_must_increase():
    with pytest.raises(ValueError, match="increasing steps"):
        loss_trend(np.zeros(200), np.zeros(200))
