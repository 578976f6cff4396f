"""Comparisons of trainings: do the intervals cover, and does every limit fail what is broken?"""

import math

import numpy as np
import pytest

from harness.dynamics import evaluation_ratio
from harness.metrics.across_seeds import across_seeds, geometric_mean
from harness.metrics.efficiency import LearningCurve, common_targets, compute_efficiency
from harness.metrics.improvement import gain_in_demanded_units
from harness.metrics.intervals import ClusterRatio, Interval
from harness.records import Status
from harness.thresholds import judge_value, load_thresholds

DOCUMENTS = 43


def _judged(check, metric, interval):
    return judge_value(load_thresholds().find(check, metric).at("8M"), interval.value, interval.ci)


def _evaluation(rng, mean, spread=0.4):
    """A made-up ``final_eval`` row: documents of unlike length and difficulty."""
    counts = rng.integers(500, 9000, DOCUMENTS)
    losses = mean + spread * np.random.default_rng(5).standard_normal(DOCUMENTS) + 0.02 * rng.standard_normal(DOCUMENTS)
    return {"loss_sums": (losses * counts).tolist(), "token_counts": counts.tolist(), "tokens": int(counts.sum())}


def _pair(mean, other, seed):
    """Losses of two models on the same documents."""
    first, second = (evaluation_ratio(_evaluation(np.random.default_rng(seed), m)) for m in (mean, other))
    return first, second


def test_intervals_over_documents_and_seeds_cover():
    rng, covered, trials = np.random.default_rng(0), 0, 300
    counts = rng.integers(500, 9000, DOCUMENTS).astype(float)
    for trial in range(trials):
        by_document = 0.05 * rng.standard_normal(DOCUMENTS)
        gaps = [
            ClusterRatio((0.1 + by_document + 0.02 * rng.standard_normal()) * counts, counts, DOCUMENTS)
            for _ in range(3)
        ]
        found = across_seeds(gaps, seed=trial)
        covered += found.low <= 0.1 <= found.high
    assert 0.85 <= covered / trials <= 0.97


def test_documents_alone_do_not_cover_the_seeds():
    # negative control: one seed's interval is about that training only
    rng, covered, trials = np.random.default_rng(1), 0, 300
    counts = np.ones(DOCUMENTS)
    for trial in range(trials):
        gap = 0.1 + 0.002 * rng.standard_normal(DOCUMENTS) + 0.05 * rng.standard_normal()
        found = across_seeds([ClusterRatio(gap, counts, DOCUMENTS)], seed=trial)
        covered += found.low <= 0.1 <= found.high
    assert covered / trials < 0.3


def test_other_documents_are_refused():
    two, three = (ClusterRatio(np.ones(n), np.ones(n), n) for n in (2, 3))
    with pytest.raises(ValueError, match="same documents"):
        across_seeds([two, three], seed=0)
    with pytest.raises(ValueError, match="at least one seed"):
        across_seeds([], seed=0)


@pytest.mark.parametrize(
    ("loss", "status"), [(6.1, Status.PASS), (6.35, Status.PASS), (6.5, Status.WARN), (7.2, Status.FAIL)]
)
def test_a_peer_that_is_much_better_fails(loss, status):
    # GPT2 at 3.5M ends at 6.297 nats; a model that never saw its context at the 7.2 of the unigram model
    gaps = [ours.minus(theirs) for ours, theirs in (_pair(loss, 6.297, seed) for seed in range(3))]
    assert _judged("PEER", "loss_gap", across_seeds(gaps, seed=0)) is status


@pytest.mark.parametrize(
    ("loss", "status"), [(5.6, Status.PASS), (6.0, Status.WARN), (6.15, Status.WARN), (6.4, Status.FAIL)]
)
def test_a_larger_model_must_be_better(loss, status):
    gains = [gain_in_demanded_units(before, after) for before, after in (_pair(6.15, loss, seed) for seed in range(3))]
    assert _judged("IMPROVEMENT", "gain", across_seeds(gains, seed=0)) is status


def test_the_demanded_improvement_is_the_easier_one():
    def loss(nats):
        return ClusterRatio(np.array([nats]), np.ones(1), 1)

    assert gain_in_demanded_units(loss(6.0), loss(5.7)).value == pytest.approx(1.0)  # 5 % of 6
    assert gain_in_demanded_units(loss(20.0), loss(19.5)).value == pytest.approx(1.0)  # half a nat, 2.5 % of 20
    assert gain_in_demanded_units(loss(6.0), loss(6.0)).value == 0


def _curves(price, seeds=3, noise=0.01):
    """Learning curves like those of the reference models, noise of evaluations included."""
    steps = np.arange(50.0, 1001.0, 50.0)
    found = []
    for seed in range(seeds):
        loss = 5.4 + 7.4 * steps**-0.33 + noise * np.random.default_rng(seed).standard_normal(len(steps))
        found.append(LearningCurve(price * steps, loss))
    return found


@pytest.mark.parametrize(("price", "status"), [(0.6, Status.PASS), (1.15, Status.WARN), (2.0, Status.FAIL)])
def test_a_model_that_needs_more_compute_fails(price, status):
    reference, subject = _curves(1.0), _curves(price)
    for target in common_targets([*reference, *subject]):
        found = compute_efficiency(reference, subject, target)
        assert found.value == pytest.approx(1 / price, rel=1e-6)
        assert _judged("CER", "cer", found) is status


def test_the_interval_over_seeds_covers_one_for_equal_models():
    covered, trials = 0, 200
    curves = _curves(1.0, seeds=6 * trials, noise=0.005)
    for trial in range(trials):
        own = curves[6 * trial : 6 * trial + 6]
        found = compute_efficiency(own[:3], own[3:], 6.4)
        covered += found.low <= 1 <= found.high
    assert 0.84 <= covered / trials <= 0.96


def test_a_single_seed_is_never_enough():
    found = compute_efficiency(_curves(1.0, 1), _curves(0.5, 1), 6.5)
    assert found.ci == (0.0, math.inf)
    assert _judged("CER", "cer", found) is Status.WARN


def test_smoothing_takes_noise_out_and_leaves_a_power_law_alone():
    steps = np.arange(50.0, 1001.0, 50.0)
    assert LearningCurve(steps, 10 * steps**-0.08).smoothed() == pytest.approx(10 * steps**-0.08, rel=1e-12)
    truth, noise = 10 * steps**-0.08, 0.05 * np.random.default_rng(1).standard_normal(len(steps))
    smooth = LearningCurve(steps, truth + noise).smoothed()
    assert np.std(smooth[2:-2] - truth[2:-2]) < 0.7 * np.std(noise[2:-2])


@pytest.mark.parametrize("losses", [[6.0] * 4, [7.0, 6.5, math.nan, 6.2, 6.1], [7.0, 6.5, math.inf, 6.2, 6.1]])
def test_a_curve_that_is_none_is_refused(losses):
    with pytest.raises(ValueError, match="learning curve needs"):
        LearningCurve(np.arange(1.0, len(losses) + 1), np.array(losses))


def test_a_mean_of_ratios_is_judged_by_the_spread_of_seeds():
    def ratio(*values):
        return geometric_mean([Interval(value, 0.9 * value, 1.1 * value, 200, 20) for value in values])

    assert _judged("BPE-REPL", "gradient_ratio", ratio(0.32, 0.35, 0.3)) is Status.PASS
    assert _judged("BPE-REPL", "gradient_ratio", ratio(0.15, 0.35, 0.3)) is Status.WARN
    # however far out: alone it fails nothing
    assert _judged("BPE-REPL", "gradient_ratio", ratio(40.0, 41.0, 42.0)) is Status.WARN
    single = Interval(0.3, 0.25, 0.35, 200, 20)
    assert geometric_mean([single]) is single
