"""Known answers of persistence: curves whose crossing is known, and those that have none."""

import math

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.metrics.persistence import Persistence, half_lives, persistence

LAGS = np.array([1, 3, 5, 8, 10, 20, 50])
CHANCE = 0.1
TEMPLATES, EACH = 20, 20


def exact_answers(accuracy_L: NDArray[np.float64]) -> Persistence:
    """Read items whose credits are the accuracies themselves: the sample is its own expectation."""
    lags = np.repeat(LAGS, TEMPLATES * EACH)
    templates = np.tile(np.repeat(np.arange(TEMPLATES), EACH), len(LAGS))
    credit = np.repeat(accuracy_L, TEMPLATES * EACH)
    return persistence(credit, lags, templates, chance=CHANCE, seed=0, resamples=50)


@known_answer("SPS", "TURNS")
def a_logistic_curve_is_recovered() -> None:
    """Crossings at 4 and 12 turns come back; the area is that of the trapezoids."""
    for turns, slope in ((4.0, 1.5), (12.0, 3.0)):
        corrected = 1 / (1 + (LAGS / turns) ** slope)
        found = exact_answers(CHANCE + (1 - CHANCE) * corrected)
        expect(f"score for {turns:g} turns", found.score.turns.value, turns, 0.01 * turns)
        expect("misfit of a curve that fits", found.misfit, 0.0, 1e-3)
    x = np.log(LAGS)
    by_hand = float(((corrected[1:] + corrected[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))
    expect("area over ln d", found.area.value, by_hand, 1e-12)


@known_answer("SPS", "TURNS")
def a_geometric_loss_has_its_half_life() -> None:
    """A loss acc = .1 + .9 q^d has ln .5 / ln q, whatever q; no loss and no memory are infinite and 0."""
    for q in (0.5, 0.8, 0.95):
        right = 400 * (CHANCE + (1 - CHANCE) * q**LAGS)
        got = float(half_lives(right[None], np.full((1, len(LAGS)), 400.0), LAGS, CHANCE)[0])
        expect(f"half-life at q = {q:g}", got, math.log(0.5) / math.log(q), 1e-3 * got)
    ends = np.array([np.full(len(LAGS), 400.0), np.full(len(LAGS), 40.0)])
    never, at_once = half_lives(ends, np.full(ends.shape, 400.0), LAGS, CHANCE)
    expect("half-life of what is never lost", float(never), math.inf)
    expect("half-life of what was never kept", float(at_once), 0.0)


@known_answer("SPS", "TURNS")
def what_does_not_cross_is_censored() -> None:
    """All right is 50 turns or more, chance is at most 1, a step is somewhere between its two lags."""
    kept = exact_answers(np.ones(len(LAGS)))
    expect("score when nothing is lost", kept.score.turns.value, 50.0)
    expect("and its upper end", kept.score.turns.high, math.inf)
    assert kept.score.censored == kept.half_life.censored == "above", "nothing lost: not marked as censored above"
    lost = exact_answers(np.full(len(LAGS), CHANCE))
    expect("score at chance (negative control)", lost.score.turns.value, 1.0)
    expect("and its lower end", lost.score.turns.low, 0.0)
    assert lost.score.censored == lost.half_life.censored == "below", "chance: not marked as censored below"
    step = exact_answers(np.where(LAGS <= 8, 1.0, CHANCE)).score.turns
    expect("score of a step from 8 to 10", step.value, math.sqrt(80), 1e-9)
    expect("its lower end", step.low, 8.0)
    expect("its upper end", step.high, 10.0)


@known_answer("SPS", "TURNS")
def what_rises_again_is_told() -> None:
    """Accuracy that comes back at longer lags is no limit of memory, and the fit says how far off it is."""
    found = exact_answers(np.array([0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9]))
    assert found.rises, "accuracy comes back and nothing says so"
    expect_between("misfit of a zigzag", found.misfit, 0.3, 1.0)
    falling = exact_answers(CHANCE + (1 - CHANCE) * 0.9**LAGS)
    assert not falling.rises, "a falling curve is said to rise (negative control)"
