"""Known answers of the comparisons of trainings: differences over seeds, ratios over seeds, compute to reach a loss."""

import math

import numpy as np

from harness.known_answers import known_answer
from harness.metrics.across_seeds import across_seeds, geometric_mean
from harness.metrics.efficiency import LearningCurve, NoCommonRangeError, common_targets, compute_efficiency
from harness.metrics.expect import expect, expect_between
from harness.metrics.intervals import ClusterRatio, Interval

_TOKENS = np.arange(100.0, 140.0)


def _losses(mean: float, seed: int, shift: float = 0.0) -> ClusterRatio:
    """Losses of 40 documents that differ by much more than ``shift``; the documents are the same for every ``mean``."""
    level = mean + np.random.default_rng(seed).normal(0.0, 0.5, len(_TOKENS))
    return ClusterRatio((level + shift) * _TOKENS, _TOKENS, len(_TOKENS))


@known_answer("PEER", "IMPROVEMENT", "EXTENDED")
def what_pairs_cancels() -> None:
    """A constant difference has an interval of no width, however unlike the documents; unlike seeds widen it."""
    gaps = [_losses(6.0, 1, 0.04).minus(_losses(6.0, 1)) for _ in range(3)]
    found = across_seeds(gaps, seed=0)
    expect("constant difference", found.value, 0.04, 1e-12)
    expect("width of its interval", found.high - found.low, 0.0, 1e-9)
    spread = across_seeds([_losses(6.0, 1, s).minus(_losses(6.0, 1)) for s in (-0.1, 0.0, 0.1)], seed=0)
    # Student's t of 2 degrees of freedom, .1 / sqrt 3 the standard error
    expect("half-width of seeds .1 apart", spread.high, 2.919986 * 0.1 / math.sqrt(3), 1e-6)
    unpaired = across_seeds([_losses(6.0, 1, 0.04).minus(_losses(6.0, 2))], seed=0)
    # negative control: other documents on the other side drown the difference
    expect_between("half-width unpaired", (unpaired.high - unpaired.low) / 2, 0.1, 1.0)


@known_answer("PEER", "IMPROVEMENT", "EXTENDED")
def other_documents_are_refused() -> None:
    """Losses on different windows are no pair."""
    refused = False
    try:
        _losses(6.0, 1).minus(ClusterRatio(np.ones(40), np.ones(40), 40))
    except ValueError:
        refused = True
    assert refused, "losses over other tokens were subtracted"


@known_answer("BPE-REPL")
def a_mean_of_ratios_is_geometric() -> None:
    """4 and 1/4 balance out; equal ratios have no width; a dead branch is 0 and never balanced."""
    opposite = geometric_mean([Interval(4.0, 3.0, 5.0, 200, 9), Interval(0.25, 0.2, 0.3, 200, 9)])
    expect("mean of 4 and 1/4", opposite.value, 1.0, 1e-12)
    expect_between("its upper bound: two seeds tell next to nothing", opposite.high, 1e3, math.inf)
    same = geometric_mean([Interval(0.3, 0.2, 0.4, 200, 9)] * 3)
    expect("mean of three alike", same.value, 0.3, 1e-12)
    expect("width", same.high - same.low, 0.0, 1e-12)
    dead = geometric_mean([Interval(0.0, math.nan, math.nan, 200, 0), same])
    expect("mean with a dead branch (negative control)", dead.value, 0.0)
    expect("its bounds", dead.low, math.nan)


def _power_law(scale: float, exponent: float, shift: float = 1.0) -> LearningCurve:
    """``L = scale (C / shift)^-exponent`` at 20 points."""
    steps = np.arange(1.0, 21.0) * 50
    return LearningCurve(shift * steps, scale * steps**-exponent)


@known_answer("CER")
def twice_the_compute_is_two() -> None:
    """A curve shifted by 2 in compute gives 2 at every loss, whatever its shape; swapped, 1/2; with itself, 1."""
    rng = np.random.default_rng(3)
    steps = np.arange(1.0, 21.0) * 50
    bumpy = 9.0 * steps**-0.05 + rng.normal(0, 0.01, 20)
    fast, slow = LearningCurve(steps, bumpy), LearningCurve(2 * steps, bumpy)
    for target in common_targets([fast, slow]):
        expect("slow over fast", compute_efficiency([slow], [fast], target).value, 2.0, 1e-9)
        expect("fast over slow", compute_efficiency([fast], [slow], target).value, 0.5, 1e-9)
        expect("a curve over itself (negative control)", compute_efficiency([fast], [fast], target).value, 1.0, 1e-12)


@known_answer("CER")
def power_laws_have_a_constant_ratio() -> None:
    """``A C^-a`` against ``B C^-a`` is (A / B)^(1/a) at every loss."""
    reference, subject = _power_law(10.0, 0.1), _power_law(9.5, 0.1)
    for target in common_targets([reference, subject]):
        found = compute_efficiency([reference] * 3, [subject] * 3, target)
        expect("ratio of power laws", found.value, (10.0 / 9.5) ** 10, 1e-9)
        expect("its width", found.high - found.low, 0.0, 1e-9)
    one = compute_efficiency([reference], [subject], common_targets([reference, subject])[0])
    expect("lower bound of a single seed", one.low, 0.0)
    expect("upper bound of a single seed", one.high, math.inf)


@known_answer("CER")
def without_a_common_loss_nothing_is_compared() -> None:
    """A training that begins below where the other ends is refused, and so is a loss that is never reached."""
    curves = [_power_law(10.0, 0.05), _power_law(2.0, 0.05)]
    refused = False
    try:
        common_targets(curves)
    except NoCommonRangeError:
        refused = True
    assert refused, "curves without a common loss were compared"
    expect("compute to a loss that is never reached", curves[0].reach(1.0), math.nan)
