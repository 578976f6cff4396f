import math

import numpy as np
import pytest

from harness.metrics.intervals import (
    ClusterRatio,
    bootstrap_ratio,
    design_effect,
    median_ratio_interval,
    t_interval,
    wilson,
)
from harness.metrics.known_answers_trend import ar1

SIMULATIONS = 300


@pytest.mark.parametrize("documents", [22, 64])
def test_bootstrap_covers_the_true_token_mean(documents):
    """The 90 % interval of a token mean over documents of unlike length covers 85 to 95 %."""
    rng = np.random.default_rng(40)
    covered = 0
    for simulation in range(SIMULATIONS):
        tokens = np.ceil(1000 * rng.lognormal(0, 0.5, documents))
        loss_sums = tokens * (6 + 0.3 * rng.standard_normal(documents))
        interval = bootstrap_ratio(ClusterRatio(loss_sums, tokens, documents), seed=simulation, resamples=500)
        covered += interval.low <= 6 <= interval.high

    assert 0.85 <= covered / SIMULATIONS <= 0.95


def test_resampling_windows_in_place_of_documents_undercovers():
    """Negative control: windows of one document agree, so an interval over windows is far too narrow."""
    rng = np.random.default_rng(41)
    covered = 0
    for simulation in range(100):
        losses = np.repeat(6 + 0.3 * rng.standard_normal(22), 20) + 0.05 * rng.standard_normal(440)
        by_window = ClusterRatio.of(losses, np.ones(440), np.arange(440))
        interval = bootstrap_ratio(by_window, seed=simulation, resamples=200)
        covered += interval.low <= 6 <= interval.high

    assert covered < 60


def test_a_paired_difference_is_far_narrower_than_its_parts():
    rng = np.random.default_rng(42)
    tokens = np.full(50, 100.0)
    ours = ClusterRatio(tokens * (6 + 0.5 * rng.standard_normal(50)), tokens, 50)
    theirs = ClusterRatio(ours.numerators + tokens * (0.02 + 0.01 * rng.standard_normal(50)), tokens, 50)

    difference = bootstrap_ratio(theirs.minus(ours), seed=0)

    assert difference.value == pytest.approx(theirs.value - ours.value)
    parts = bootstrap_ratio(ours, seed=0)
    assert difference.high - difference.low < 0.05 * (parts.high - parts.low)
    assert difference.low > 0
    assert ours.minus(ours).value == 0


def test_a_difference_over_unlike_windows_is_refused():
    with pytest.raises(ValueError, match="same windows"):
        ClusterRatio(np.ones(3), np.ones(3), 3).minus(ClusterRatio(np.ones(3), np.full(3, 2.0), 3))


def test_windows_are_summed_by_document():
    ratio = ClusterRatio.of([1, 2, 3, 4], [1, 1, 1, 2], [7, 3, 7, 3])

    assert ratio.numerators.tolist() == [6, 4]
    assert ratio.denominators.tolist() == [3, 2]
    assert (ratio.value, ratio.n) == (2.0, 4)


def test_the_seed_decides_the_interval():
    ratio = ClusterRatio(np.arange(1.0, 21), np.ones(20), 20)

    assert bootstrap_ratio(ratio, seed=1) == bootstrap_ratio(ratio, seed=1)
    assert bootstrap_ratio(ratio, seed=1) != bootstrap_ratio(ratio, seed=2)


def test_one_cluster_or_seed_says_nothing_of_the_spread():
    assert bootstrap_ratio(ClusterRatio(np.ones(1), np.ones(1), 9), seed=0).ci == (-math.inf, math.inf)
    assert t_interval([0.5]).ci == (-math.inf, math.inf)


def test_a_ratio_that_is_no_number_has_no_interval():
    interval = bootstrap_ratio(ClusterRatio(np.array([1.0, math.nan]), np.ones(2), 2), seed=0)
    assert all(map(math.isnan, (interval.value, *interval.ci)))
    interval = bootstrap_ratio(ClusterRatio(np.zeros(4), np.zeros(4), 4), seed=0)
    assert all(map(math.isnan, (interval.value, *interval.ci)))


def test_wilson_of_five_in_five():
    """Five of five is no proof: the 95 % interval reaches down to .57."""
    interval = wilson(5, 5, level=0.95)

    assert interval.low == pytest.approx(0.5655, abs=1e-4)
    assert interval.high == 1.0


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, n in ((0, 7), (3, 17), (200, 400)):
        expected = binomtest(successes, n).proportion_ci(0.9, method="wilson")
        assert wilson(successes, n).ci == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_items_of_one_template_count_for_less():
    deff = design_effect(40, 0.1)
    assert deff == pytest.approx(4.9)

    clustered = wilson(300, 400, deff=deff)

    assert clustered.n_clusters == 81
    assert clustered.high - clustered.low > 2 * (wilson(300, 400).high - wilson(300, 400).low)
    # four items are worth one when every four of them always agree
    assert wilson(60, 80, deff=design_effect(4, 1.0)).ci == pytest.approx(wilson(15, 20).ci, abs=1e-12)


def test_no_item_has_no_proportion():
    with pytest.raises(ValueError, match="at least one item"):
        wilson(0, 0)


def test_t_interval_of_three_seeds():
    """Student at 2 degrees of freedom: 2.920 standard errors either way at 90 %."""
    interval = t_interval([1.0, 2.0, 3.0])

    assert interval.ci == pytest.approx((2 - 2.91999 / math.sqrt(3), 2 + 2.91999 / math.sqrt(3)), abs=1e-4)


@pytest.mark.parametrize(("phi", "least"), [(0.0, 0.86), (0.5, 0.85), (0.9, 0.82)])
def test_the_ratio_interval_allows_for_memory(phi, least):
    """Coverage of a nominal 90 % over 200 steps; at phi = .9 ten independent stretches are left, and it shows."""
    noise = ar1(np.random.default_rng(43), SIMULATIONS, 200, phi)
    covered = 0
    for row in noise:
        interval = median_ratio_interval(0.25 * np.exp(0.3 * row), np.ones(200), seed=0, resamples=300)
        covered += interval.low <= 0.25 <= interval.high

    assert least <= covered / SIMULATIONS <= 0.96


def test_only_the_last_steps_count():
    over = np.r_[np.full(300, 9.0), np.full(200, 0.5)]

    assert median_ratio_interval(over, np.ones(500), seed=0).ci == pytest.approx((0.5, 0.5))
    assert median_ratio_interval(over, np.ones(500), seed=0).n == 200
