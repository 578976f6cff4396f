"""Paired differences: known answers, coverage, and the negative control of two runs that differ by noise alone."""

import math

import numpy as np
import pytest

from harness.metrics.paired import exact_mcnemar, paired_difference


def unpaired_p(first, second, items):
    """Two-sided p of two shares of equally many items, taken as independent: the pooled z test."""
    share = (first + second) / (2 * items)
    z = (second - first) / items / math.sqrt(2 * share * (1 - share) / items)
    return math.erfc(abs(z) / math.sqrt(2))


def test_pairing_tells_what_two_separate_shares_cannot():
    # 159 of 220 right in both, 7 in the first alone, 22 in the second alone: 166 against 181 right
    both, alone = 159, (7, 22)
    first = np.array([1] * both + [1] * alone[0] + [0] * alone[1] + [0] * (220 - both - sum(alone)))
    second = np.array([1] * both + [0] * alone[0] + [1] * alone[1] + [0] * (220 - both - sum(alone)))
    assert round(unpaired_p(first.sum(), second.sum(), 220), 3) == 0.080
    found = paired_difference(first, second, np.ones(220), seed=0)
    assert round(found.p_value, 3) == 0.008
    assert (found.higher, found.lower, found.equal) == (22, 7, 191)
    assert found.value == pytest.approx(15 / 220)
    assert 0 < found.over_items.low < found.value < found.over_items.high


@pytest.mark.parametrize(
    ("higher", "lower", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (8, 0, 2 / 2**8),
        (0, 8, 2 / 2**8),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),  # by hand: 112 / 1024
    ],
)
def test_the_exact_test_by_hand(higher, lower, p_value):
    assert exact_mcnemar(higher, lower) == pytest.approx(p_value, abs=1e-15)


def test_few_answers_that_differ_are_no_claim():
    # the bootstrap alone would say so: a resample without any of the three is rare
    first = np.array([0] * 3 + [1] * 17)
    found = paired_difference(first, np.ones(20), np.ones(20), seed=0)
    assert found.over_items.low > 0
    assert found.p_value == 0.25


def test_the_same_model_differs_by_nothing():
    sums = np.random.default_rng(0).normal(6, 1, (2, 43))
    found = paired_difference(sums, sums, np.ones(43), seed=0)
    assert (found.value, found.over_items.ci, found.p_value, found.equal) == (0.0, (0.0, 0.0), 1.0, 43)


def test_a_constant_a_token_is_found_to_the_digit():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, 43) * 256.0
    sums = counts * rng.normal(6, 1, 43)
    found = paired_difference(sums, sums + 0.02 * counts, counts, seed=0)
    assert found.value == pytest.approx(0.02)
    assert found.over_items.ci == pytest.approx((0.02, 0.02))
    assert found.p_value < 1e-12
    # unpaired, the spread of the documents hides it
    assert np.std(sums / counts) / math.sqrt(43) > 5 * 0.02


def simulated(rng, *, seeds=1, documents=43, shift=0.0, between_trainings=0.0):
    """Sums of two models on the same documents: what is hard is hard for both, what noise gives is each one's own."""
    counts = rng.integers(1, 9, documents) * 256.0
    hard = rng.normal(6.0, 0.5, documents)
    trainings = rng.normal(0, between_trainings, (2, seeds, 1)) if between_trainings else np.zeros((2, seeds, 1))
    nats = hard + trainings + rng.normal(0, 0.05, (2, seeds, documents))
    nats[1] += shift
    return nats[0] * counts, nats[1] * counts, counts


def share_worse(seed, runs=200, **model):
    rng = np.random.default_rng(seed)
    found = [paired_difference(*simulated(rng, **model), seed=i) for i in range(runs)]
    return np.mean([each.p_value <= 0.1 and each.value > 0 for each in found])


def test_two_runs_that_differ_by_noise_are_called_worse_one_time_in_twenty():
    assert 0.02 <= share_worse(1) <= 0.085


def test_a_planted_shift_is_found():
    # four standard errors: 0.05 against 0.05 sqrt(2) / sqrt(43), and the weights of unequal documents
    assert share_worse(2, runs=50, shift=0.05) >= 0.9


def test_noise_of_the_trainings_makes_no_claim_where_there_are_seeds():
    noisy = {"between_trainings": 0.05}
    assert share_worse(3, seeds=3, **noisy) <= 0.085
    # negative control: from one seed, documents alone call most such pairs different
    assert share_worse(3, seeds=1, **noisy) >= 0.25


def test_seeds_are_told_apart():
    found = paired_difference([[1.0, 2.0], [1.0, 2.0]], [[1.5, 2.5], [1.0, 2.0]], [1, 1], seed=0)
    assert found.by_seed == (0.5, 0.0)
    assert found.value == 0.25
    assert found.over_seeds.value == 0.25


def test_sums_that_are_no_numbers_give_no_p():
    assert math.isnan(paired_difference([1.0, math.nan], [1.0, 2.0], [1, 1], seed=0).p_value)
    assert math.isnan(paired_difference([[1.0, math.inf]] * 2, [[1.0, 2.0]] * 2, [1, 1], seed=0).p_value)


@pytest.mark.parametrize(
    ("first", "second", "counts"), [([1.0], [1.0, 2.0], [1, 1]), ([1.0], [1.0], [1, 1]), ([1.0], [1.0], [0])]
)
def test_other_items_are_refused(first, second, counts):
    with pytest.raises(ValueError, match="give the same items"):
        paired_difference(first, second, counts, seed=0)
