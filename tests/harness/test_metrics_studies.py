"""The known answers of the studies hold, are fast, and fail when the maths behind them is broken; with oracles."""

import math
import time
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from harness.known_answers import _registry
from harness.metrics import (
    anova,
    known_answers_anova,
    known_answers_pareto,
    known_answers_regression,
    pareto,
    regression,
    text,
)
from harness.metrics.intervals import Interval
from harness.metrics.trend import UnderpoweredError

MODULES = (known_answers_regression, known_answers_anova, known_answers_pareto)


def registered(module):
    return [entry.function for entry in _registry.values() if entry.function.__module__ == module.__name__]


KNOWN_ANSWERS = [function for module in MODULES for function in registered(module)]


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_together_they_take_less_than_a_second():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1


true_response, true_analysis, true_standings = regression.response, anova.two_by_two, pareto.standings


def response_of_the_knob_itself(knob, values, blocks):
    return true_response(np.exp2(knob), values, blocks)


def response_without_blocks(knob, values, blocks):
    return true_response(knob, values, np.zeros(len(values)))


def overconfident_response(knob, values, blocks):
    fit = true_response(knob, values, blocks)
    half = (fit.curvature.high - fit.curvature.low) / 8
    return replace(
        fit, curvature=replace(fit.curvature, low=fit.curvature.value - half, high=fit.curvature.value + half)
    )


def analysis_with_factors_exchanged(values):
    return true_analysis(np.swapaxes(values, 0, 1))


def analysis_that_calls_everything(values):
    found = true_analysis(values)
    return replace(found, interaction=replace(found.interaction, p_value=0.01))


BROKEN = [
    (known_answers_regression, regression, "response", response_of_the_knob_itself),
    (known_answers_regression, regression, "response", response_without_blocks),
    (known_answers_regression, regression, "response", overconfident_response),
    (known_answers_regression, regression, "MIN_PLACES", 2),
    (known_answers_anova, anova, "two_by_two", analysis_with_factors_exchanged),
    (known_answers_anova, anova, "two_by_two", analysis_that_calls_everything),
    (known_answers_anova, text, "bits_per_byte", lambda n, b, d: text.ClusterRatio.of(n, np.asarray(b, float), d)),
    (known_answers_pareto, pareto, "on_frontier", lambda loss, balance: np.ones(np.shape(loss), bool)),
    (known_answers_pareto, pareto, "on_frontier", lambda loss, balance: loss == np.min(loss, -1, keepdims=True)),
    (known_answers_pareto, pareto, "standings", lambda x, y, seed: true_standings(np.roll(x, 1, 0), y, seed=seed)),
    (known_answers_pareto, pareto, "rank_correlation", lambda x, y, **_: pareto.Correlation(1.0, 0.0, 8)),
    (known_answers_pareto, pareto, "is_trade_off", lambda correlation, loss, balance: correlation.rho > 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "module", "name", "broken"), BROKEN, ids=[f"{r[2]}-{i}" for i, r in enumerate(BROKEN)]
)
def test_what_is_broken_fails_a_known_answer(monkeypatch, known, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    failures = 0
    for function in registered(known):
        try:
            function()
        except (AssertionError, ValueError):
            failures += 1
    assert failures >= 1


def test_without_blocks_the_slope_is_that_of_scipy():
    rng = np.random.default_rng(0)
    knob = np.exp2(rng.uniform(-2, 2, 20))
    y = rng.standard_normal(20)
    fit, oracle = regression.response(knob, y, np.zeros(20)), stats.linregress(np.log2(knob), y)
    half = stats.t.ppf(0.95, 18) * oracle.stderr
    assert (fit.slope.value, fit.slope.high) == pytest.approx((oracle.slope, oracle.slope + half))


def test_an_effect_is_a_t_test_where_the_other_factor_does_nothing():
    y = np.random.default_rng(1).standard_normal((2, 2, 4))
    found = anova.two_by_two(y)
    total = ((y - y.mean()) ** 2).sum()
    within = found.noise**2 * found.free
    explained = (found.first.share + found.second.share + found.interaction.share) * total
    assert explained + within == pytest.approx(total)
    assert found.first.p_value == pytest.approx(stats.f.sf(found.first.f, 1, 12))
    low = found.first.difference.low
    assert (low > 0) == (found.first.p_value < 0.1 and found.first.difference.value > 0)


def test_rho_is_that_of_scipy_and_p_that_of_all_orders():
    x, y = np.array([1.0, 2, 3, 4, 5, 5]), np.array([2.0, 1, 4, 3, 6, 5])
    found = pareto.rank_correlation(x, y, seed=0, permutations=20_000)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    every = [stats.pearsonr(stats.rankdata(x), order).statistic for order in permutations(stats.rankdata(y))]
    exact = np.mean(np.array(every) >= found.rho - 1e-9)
    assert found.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: regression.response([1, 2, 4] * 3, [*range(8), math.nan], [0, 1, 2] * 3), "no curve there"),
        (lambda: regression.response([1, 2, 4], [1, 2, 3], [0, 0, 0]), "more seeds"),
        (lambda: anova.two_by_two(np.full((2, 2, 3), math.nan)), "not finite"),
        (lambda: pareto.standings(np.ones((8, 1)), np.ones((8, 1)), seed=0), "one run of a variant"),
        (lambda: pareto.rank_correlation([1, 2, 3], [1, 2, 3], seed=0), "at least five"),
        (lambda: pareto.rank_correlation(range(8), [1] * 8, seed=0), "the same for all"),
    ],
)
def test_what_cannot_carry_a_claim_is_refused(call, said):
    with pytest.raises(UnderpoweredError, match=said):
        call()


def test_an_intervention_that_is_not_certain_agrees_with_nothing():
    seen = pareto.Correlation(0.9, 0.01, 8)
    sure, unsure = Interval(1, 0.5, 1.5, 15, 3), Interval(1, -0.1, 2.1, 15, 3)
    assert pareto.is_trade_off(seen, sure, sure)
    assert not pareto.is_trade_off(seen, sure, unsure)
    assert not pareto.is_trade_off(replace(seen, p_value=0.05), sure, sure)
