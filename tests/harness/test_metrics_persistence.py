"""Persistence over turns: known answers, coverage, an independent fit, and inputs that have no answer."""

import math
import time

import numpy as np
import pytest
from registered_answers import fails, registered_in
from scipy.optimize import minimize

from harness.metrics import known_answers_persistence
from harness.metrics import persistence as module
from harness.metrics.known_answers_persistence import CHANCE, LAGS
from harness.metrics.persistence import half_lives, persistence

KNOWN_ANSWERS = registered_in(known_answers_persistence)


def answers(random, accuracies, *, icc=0.0, templates=40, each=10, own=False):
    """Credits, lags and templates of items right with these probabilities; ``own``: no lag shares a template."""
    parts = []
    for place, (lag, p) in enumerate(zip(LAGS, accuracies, strict=True)):
        spread = (1 - icc) / icc if icc else math.inf
        chance = random.beta(p * spread, (1 - p) * spread, templates) if icc and 0 < p < 1 else np.full(templates, p)
        right = (random.random((templates, each)) < chance[:, None]).ravel()
        parts.append((right, np.full(len(right), lag), np.repeat(np.arange(templates) + 1000 * place * own, each)))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def read(random, accuracies, *, resamples=100, seed=0, **keywords):
    return persistence(*answers(random, accuracies, **keywords), chance=CHANCE, seed=seed, resamples=resamples)


def logistic(turns, slope):
    return CHANCE + (1 - CHANCE) / (1 + (LAGS / turns) ** slope)


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_they_are_fast():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1


true_crossing = module._crossing


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        # accuracy not corrected for chance: c + (1 - c) / 2 is taken for one half of nothing
        ("_log_likelihood", lambda right, total, p: right * 0 - (right / total - p) ** 2 + p * 0.05),
        # nothing is ever censored
        ("_crossing", lambda f, lags, t, c, b: true_crossing(np.clip(f, lags[0], lags[-1]), lags, t, c, b)),
        # a step is placed where the fit happens to end
        ("_crossing", lambda f, lags, t, c, b: true_crossing(f, lags, t, c, None)),
        # half-lives of the accuracy as it stands
        ("half_lives", lambda r, n, lags, chance: half_lives(r, n, lags, 1e-9)),
    ],
    ids=["least squares", "never censored", "a step anywhere", "no chance"],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, name, broken):
    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(known_answers_persistence, "half_lives", getattr(module, "half_lives"))  # noqa: B009
    assert any(fails(function) for function in KNOWN_ANSWERS)


def test_the_fit_is_the_maximum_of_the_likelihood():
    random = np.random.default_rng(0)
    for turns, slope in ((2.0, 1.0), (8.0, 2.0), (25.0, 1.2)):
        credit, lags, templates = answers(random, logistic(turns, slope))
        x = np.log(lags)

        def loss(ab, x=x, credit=credit):
            p = CHANCE + (1 - CHANCE) / (1 + np.exp(-(ab[0] - ab[1] * x)))
            return -float(np.log(np.where(credit, p, 1 - p)).sum())

        best = minimize(
            loss, [slope * math.log(turns), slope], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}
        )
        found = persistence(credit, lags, templates, chance=CHANCE, seed=0, resamples=20).score.turns.value
        assert found == pytest.approx(math.exp(best.x[0] / best.x[1]), rel=1e-3)


@pytest.mark.parametrize("own", [False, True])
def test_intervals_cover(own):
    random = np.random.default_rng(1)
    q = 0.5 ** (1 / 8)
    outside = []
    for seed in range(80):
        score = read(random, logistic(8, 2), icc=0.1, own=own, seed=seed).score.turns
        half = read(random, CHANCE + (1 - CHANCE) * q**LAGS, icc=0.1, own=own, seed=seed).half_life.turns
        outside.append((not score.low <= 8 <= score.high, not half.low <= 8 <= half.high))
    # 10 % nominal; three standard errors of 80 are 10 %
    assert (np.mean(outside, axis=0) <= 0.2).all()
    assert (np.mean(outside, axis=0) >= 0.01).all()


def test_where_loss_is_geometric_the_score_is_below_the_half_life_by_little():
    for half in (1.5, 3.0, 5.0, 8.0, 15.0, 30.0):
        exact = CHANCE + (1 - CHANCE) * 0.5 ** (LAGS / half)
        found = known_answers_persistence.exact_answers(exact)
        assert found.half_life.turns.value == pytest.approx(half, rel=1e-3)
        assert 0.90 * half <= found.score.turns.value <= 0.97 * half


def test_templates_that_all_lags_share_move_together():
    random = np.random.default_rng(2)
    # each template is right at every lag or at none
    good = random.random(40) < 0.6
    credit = np.tile(np.repeat(good, 10), len(LAGS)).astype(float)
    lags = np.repeat(LAGS, 400)
    shared = np.tile(np.repeat(np.arange(40), 10), len(LAGS))
    own = shared + 1000 * np.searchsorted(LAGS, lags)
    wide, narrow = (persistence(credit, lags, each, chance=CHANCE, seed=0).area for each in (shared, own))
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)
    with pytest.raises(ValueError, match="some of the 7 lags"):
        persistence(credit, lags, np.where(lags < 10, shared, own), chance=CHANCE, seed=0)


def test_all_right_is_fifty_turns_or_more_and_all_wrong_is_less_than_one():
    random = np.random.default_rng(3)
    kept = read(random, np.ones(len(LAGS)))
    assert (kept.score.censored, kept.score.turns.ci) == ("above", (50.0, math.inf))
    # the bootstrap of all right has no width; the area has some
    assert 0.98 < kept.area.low < 1.0 == kept.area.value
    # below chance is not below nothing
    for p in (CHANCE, 0.0):
        lost = read(random, np.full(len(LAGS), p))
        assert (lost.score.censored, lost.score.turns.ci) == ("below", (0.0, 1.0))
        assert lost.half_life.censored == "below"


def test_a_flat_curve_above_one_half_is_censored_and_below_is_too():
    random = np.random.default_rng(4)
    assert read(random, np.full(len(LAGS), 0.8)).score.censored == "above"
    assert read(random, np.full(len(LAGS), 0.3)).score.censored == "below"


def test_near_the_end_the_interval_is_open():
    random = np.random.default_rng(5)
    found = read(random, logistic(45, 1.5), icc=0.1)
    assert 20 < found.score.turns.low < 50
    assert found.score.turns.high == math.inf


def test_one_template_tells_nothing():
    random = np.random.default_rng(6)
    found = read(random, logistic(8, 2), templates=1, each=50)
    assert found.score.turns.ci == (0.0, math.inf)
    assert found.area.ci == (-math.inf, math.inf)


def test_nan_is_no_persistence():
    credit, lags, templates = answers(np.random.default_rng(7), logistic(8, 2))
    found = persistence(np.where(lags == 5, math.nan, credit), lags, templates, chance=CHANCE, seed=0)
    for number in (found.score.turns.value, found.half_life.turns.value, found.area.value, found.misfit):
        assert math.isnan(number)
    assert [math.isnan(each.value) for each in found.accuracies] == [lag == 5 for lag in LAGS]
    assert not found.rises


def test_too_few_lags_and_lag_0_are_refused():
    for lags in ([1, 1, 3, 3], [0, 1, 3, 0]):
        with pytest.raises(ValueError, match="three or more"):
            persistence([1, 0, 1, 0], lags, [0, 1, 0, 1], chance=CHANCE, seed=0)


def test_the_same_seed_gives_the_same_interval():
    first, second = (read(np.random.default_rng(8), logistic(8, 2)) for _ in range(2))
    assert first == second
