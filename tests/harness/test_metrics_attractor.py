"""The known answers of GATES hold, are fast, and fail when the maths behind them is broken; with oracles."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from registered_answers import fails, registered_in
from scipy import stats

from harness.metrics import attractor, known_answers_attractor
from harness.metrics.attractor import Attraction, attraction, logit
from harness.metrics.intervals import Interval
from harness.metrics.trend import UnderpoweredError

KNOWN_ANSWERS = registered_in(known_answers_attractor)
SHARES = (0.03, 0.3, 0.5, 0.7, 0.97)
STARTS = logit(SHARES)
true_attraction = attractor.attraction


def share(logits):
    return 1 / (1 + np.exp(-np.asarray(logits)))


def ends(seed, slope=0.4, place=0.7, noise=0.3):
    rng = np.random.default_rng(seed)
    return share(slope * STARTS[:, None] + (1 - slope) * logit(place) + noise * rng.standard_normal((5, 3)))


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_together_they_take_less_than_a_second():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1


def in_shares(initial, final):
    """A line through the shares themselves: as if they were logits."""
    return true_attraction(share(initial), share(final))


def overconfident(initial, final):
    fit = true_attraction(initial, final)
    half = (fit.slope.high - fit.slope.low) / 8
    return replace(fit, slope=replace(fit.slope, low=fit.slope.value - half, high=fit.slope.value + half))


def place_without_its_line(initial, final):
    """The fixed point as a / 1, as if b were 0."""
    fit = true_attraction(initial, final)
    place = share([fit.intercept.value, *fit.intercept.ci])
    return replace(fit, fixed_point=fit.fixed_point and Interval(*place.tolist(), 3, 3))


def place_whatever_the_slope(initial, final):
    fit = true_attraction(initial, final)
    return replace(fit, fixed_point=fit.fixed_point or Interval(0.5, 0.4, 0.6, 3, 3))


BROKEN = [
    ("attraction", in_shares),
    ("attraction", overconfident),
    ("attraction", place_without_its_line),
    ("attraction", place_whatever_the_slope),
    ("attraction", lambda p, q: replace(true_attraction(p, q), meeting=())),
    ("attraction", lambda p, q: replace(true_attraction(p, q), misfit_p=1.0)),
    ("attraction", lambda p, q: replace(true_attraction(p, q), uneven_p=1.0)),
    ("attraction", lambda p, q: replace(true_attraction(p, q), gap_p=1.0)),
    ("attraction", lambda p, q: replace(true_attraction(p, q), scatter=0.0)),
    ("attraction", lambda p, q: replace(true_attraction(p, q), misfit_p=0.0)),
    ("KEPT", 0.8),
    ("KEPT", 0.01),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[f"{row[0]}-{i}" for i, row in enumerate(BROKEN)])
def test_what_is_broken_fails_a_known_answer(monkeypatch, name, broken):
    monkeypatch.setattr(attractor, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


def test_the_slope_is_that_of_a_line_for_each_seed():
    final = ends(0)
    by_seed = [stats.linregress(STARTS, logit(final[:, seed])) for seed in range(3)]
    slopes = [line.slope for line in by_seed]
    half = stats.t.ppf(0.95, 2) * np.std(slopes, ddof=1) / math.sqrt(3)
    found = attraction(SHARES, final)
    assert (found.slope.value, found.slope.high) == pytest.approx((np.mean(slopes), np.mean(slopes) + half))
    assert found.intercept.value == pytest.approx(np.mean([line.intercept for line in by_seed]))
    residual = logit(final) - found.intercept.value - found.slope.value * STARTS[:, None]
    moved = logit(final) - STARTS[:, None]
    assert found.scatter == pytest.approx(math.sqrt((residual**2).sum() / (moved**2).sum()))
    assert found.spread == pytest.approx(final.std() / np.std(SHARES))


def test_the_interval_of_the_place_holds_what_no_t_test_over_seeds_rejects():
    final = ends(1)
    found = attraction(SHARES, final).fixed_point
    lines = [stats.linregress(STARTS, logit(final[:, seed])) for seed in range(3)]

    def p_of(place):
        return stats.ttest_1samp([line.intercept - (1 - line.slope) * logit(place) for line in lines], 0).pvalue

    assert p_of(found.low) == pytest.approx(0.1)
    assert p_of(found.high) == pytest.approx(0.1)
    assert found.low < found.value < found.high
    assert p_of(found.value) > 0.99


def test_the_misfit_is_the_f_test_of_nested_models():
    final = ends(2)
    y, start, seed = logit(final).ravel(), np.repeat(np.arange(5), 3), np.tile(np.arange(3), 5)
    seeds = np.eye(3)[seed]

    def rest(design):
        return ((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum()

    line, free = rest(np.column_stack([seeds, STARTS[start]])), rest(np.column_stack([seeds, np.eye(5)[start]]))
    assert attraction(SHARES, final).misfit_p == pytest.approx(stats.f.sf((line - free) / 3 / (free / 8), 3, 8))


def test_the_largest_of_five_variances_is_called_large_as_often_as_tabled():
    # upper 5 % of C for five variances of three values each is .6838 (Cochran's table)
    rng = np.random.default_rng(3)
    y = rng.standard_normal((20_000, 5, 3)).var(-1, ddof=1)
    largest = y.max(-1) / y.sum(-1)
    assert np.mean(largest > 0.6838) == pytest.approx(0.05, abs=0.006)
    logits = np.tile([-1.0, 0.0, 1.0], (5, 1))
    logits[0] *= math.sqrt(4 * 0.6838 / (1 - 0.6838))
    assert attraction(SHARES, share(logits)).uneven_p == pytest.approx(0.05, abs=2e-4)


def test_noise_about_a_line_has_no_gap_more_often_than_said():
    found = np.array([attraction(SHARES, ends(seed)).gap_p for seed in range(400)])
    assert np.mean(found < 0.1) == pytest.approx(0.1, abs=0.045)
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("slope", "said"),
    [
        ((0.0, -0.1, 0.2), "one place"),
        ((0.0, -0.3, 0.3), "not shown to matter"),
        ((0.5, 0.3, 0.7), "pulled towards one place"),
        ((1.0, 0.9, 1.1), "near its start"),
        ((0.9, 0.5, 1.3), "not shown to be pulled"),
        ((1.5, 1.2, 1.8), "driven apart"),
        ((0.5, -0.5, 1.5), "undecided"),
    ],
)
def test_the_verdict_follows_the_interval(slope, said):
    quiet = Attraction(Interval(*slope, 3, 3), Interval(0, -1, 1, 3, 3), None, 0.2, 0.5, 1.0, 1.0, 1.0, (), 5)
    assert said in quiet.verdict
    assert quiet.is_attractor == ("whatever the start" in quiet.verdict)
    assert quiet.extrapolated == (slope[0] > 0.5)
    # the negative controls of a claim: ends as far apart as the starts, and residuals that say more than a line
    assert not replace(quiet, spread=0.6).is_attractor
    for test in ("misfit_p", "uneven_p", "gap_p"):
        bent = replace(quiet, **{test: 0.01})
        assert "no single line" in bent.verdict
        assert not bent.is_attractor
        assert bent.place is None
        assert replace(bent, scatter=0.05).verdict == quiet.verdict


def test_gates_that_agree_to_the_bit_or_never_moved_are_read_without_a_warning():
    still = attraction(SHARES, np.repeat(np.array(SHARES)[:, None], 3, 1))
    assert (still.slope.value, still.scatter, still.fixed_point) == (pytest.approx(1), pytest.approx(0), None)
    same = attraction(SHARES, np.full((5, 3), 0.7))
    assert same.is_attractor
    assert same.place.value == pytest.approx(0.7)
    assert same.meeting_share == 1


@pytest.mark.parametrize(
    ("initial", "final", "said"),
    [
        (SHARES, np.full((5, 2), 0.5), "2 seeds"),
        (SHARES[:3], np.full((3, 3), 0.5), "3 different of 3"),
        ((0.5, 0.5, 0.3, 0.4, 0.6), np.full((5, 3), 0.5), "4 different of 5"),
        (SHARES, np.where(np.eye(5, 3, dtype=bool), 1.0, 0.5), "final share is 1"),
        (SHARES, np.full((5, 3), math.nan), "final share is nan"),
        ((0.0, *SHARES[1:]), np.full((5, 3), 0.5), "initial share is 0"),
    ],
)
def test_what_cannot_carry_a_line_is_refused(initial, final, said):
    with pytest.raises(UnderpoweredError, match=said):
        attraction(initial, final)
