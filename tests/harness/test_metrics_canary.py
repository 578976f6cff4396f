"""Forced choices and their scores: known answers, coverage of the intervals, and metrics broken on purpose."""

import math
import time

import numpy as np
import pytest
from registered_answers import fails, registered_in
from template_answers import answers_by_template

from harness.known_answers import _registry
from harness.metrics import canary_score, clustered, forced_choice, known_answers_canary
from harness.metrics.canary_score import Answers, macro_score
from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import Interval, expanded_tail, wilson

KNOWN_ANSWERS = registered_in(known_answers_canary)


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_each_canary_has_known_answers_and_they_are_fast():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1
    for canary in known_answers_canary.CANARIES:
        assert sum(canary in e.checks and e.function in KNOWN_ANSWERS for e in _registry.values()) >= 5


true_choices = forced_choice.choices


def first_of_the_best(scores):
    return np.eye(scores.shape[1])[np.nan_to_num(scores).argmax(1)]


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        # the first of level candidates: a scorer that knows nothing gets whatever stands first
        (forced_choice, "choices", first_of_the_best),
        # ties are wrong
        (forced_choice, "choices", lambda s: true_choices(s) * (true_choices(s).max(1, keepdims=True) == 1)),
        # raw likelihood instead of what the fact adds
        (forced_choice, "log_ratio", lambda given, bare: np.asarray(given)),
        # joint rules read as any of the probes
        (forced_choice, "at_least", lambda need, p: float(1 - np.prod(1 - p))),
        # items counted as if they shared no template
        (clustered, "clustered_share", lambda c, g: wilson(float(c.sum()), len(c))),
        (clustered, "intraclass_correlation", lambda v, c: 0.0),
        # a bootstrap of seeds: two seeds are said to be known to their own spread
        (canary_score, "t_interval", lambda v: Interval(v.mean(), v.min(), v.max(), len(v), len(v))),
    ],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


def test_raw_logits_are_refused():
    with pytest.raises(ValueError, match="log_softmax"):
        forced_choice.log_ratio([[3.0, -1.0]], [[-1.0, -1.0]])
    with pytest.raises(ValueError, match=r"\[n, k\]"):
        forced_choice.log_ratio([[-1.0, -1.0]], [[-1.0]])


def test_a_candidate_that_became_impossible_is_never_chosen():
    ratio = forced_choice.log_ratio([[-math.inf, -1.0]], [[-1.0, -2.0]])
    assert forced_choice.choices(ratio).tolist() == [[0, 1]]
    # impossible with and without: no evidence, no number
    both = forced_choice.log_ratio([[-math.inf, -1.0]], [[-math.inf, -2.0]])
    assert np.isnan(forced_choice.credit(both, [[True, False]])).all()


def test_a_choice_does_not_depend_on_rounding_or_order():
    random = np.random.default_rng(0)
    scores = random.standard_normal((50, 10))
    order = random.permutation(10)
    np.testing.assert_array_equal(forced_choice.choices(scores)[:, order], forced_choice.choices(scores[:, order]))
    level = np.array([[0.1 + 0.2, 0.3]])
    assert level[0, 0] != level[0, 1]
    assert forced_choice.choices(level).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("gold", [(), (5,), (-1,)])
def test_gold_must_be_a_candidate(gold):
    with pytest.raises(ValueError, match="probe 1"):
        forced_choice.gold_mask([(0,), gold], 5)


@pytest.mark.parametrize("need", [[0, 1], [3, 1], [1, 2], [1]])
def test_an_impossible_rule_is_refused(need):
    with pytest.raises(ValueError, match="need"):
        forced_choice.joint_credit([1.0, 1.0, 1.0], [0, 0, 1], need)


def test_joint_rules_agree_with_drawing_lots():
    random = np.random.default_rng(1)
    p = random.random(6)
    drawn = random.random((200_000, 6)) < p
    for need in range(1, 7):
        exact = forced_choice.joint_credit(p, np.zeros(6, int), [need])[0]
        assert exact == pytest.approx((drawn.sum(1) >= need).mean(), abs=0.005)


def test_probes_may_come_in_any_order():
    right = forced_choice.joint_credit([1, 0, 1, 1], [1, 0, 0, 1], [1, 2])
    assert right.tolist() == [1, 1]


def test_reference_rates_by_hand():
    # one probe: gold 0; mentioned 0 and 1, the last being 1. another: nothing mentioned
    rates = forced_choice.reference_rates(
        np.eye(4, dtype=bool)[[0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]], [1, -1], [0, 1], [1, 1]
    )
    assert (rates.uniform, rates.always_last, rates.bag_of_words, rates.oracle) == (0.25, 0.125, 0.375, 1.0)
    with pytest.raises(ValueError, match="mentioned last"):
        forced_choice.reference_rates([[True, False]], [[False, True]], [0], [0], [1])


def test_reversion_without_either_value_has_no_share():
    scores = np.array([[-5.0, -5.0, 0.0]])
    found = forced_choice.reversion(scores, [0], [1], [0])
    assert found.old.value == 0
    assert found.among_named is None
    broken = forced_choice.reversion(scores + math.nan, [0], [1], [0])
    assert math.isnan(broken.old.value)
    assert math.isnan(broken.among_named.value)


def test_kappa_moves_the_bounds_too():
    found = forced_choice.kappa(Interval(0.4, 0.2, 0.6, 400, 40), 0.2)
    assert (found.value, *found.ci) == pytest.approx((0.25, 0.0, 0.5))
    assert (found.n, found.n_clusters) == (400, 40)


# --- several canaries and seeds --------------------------------------------------------------------------------------


def macro(sets, offset=1000):
    """The score of canaries ``[canaries][templates, each]`` with templates of their own, or shared for offset 0."""
    return macro_score(
        [
            Answers(each.reshape(1, -1), np.repeat(np.arange(len(each)) + offset * place, each.shape[1]))
            for place, each in enumerate(sets)
        ]
    ).score


def bootstrap(random, sets, resamples=400):
    """Percentile interval of the macro score, templates drawn within each canary, widened for few clusters."""
    drawn = np.mean([s.mean(1)[random.integers(0, len(s), (resamples, len(s)))].mean(1) for s in sets], axis=0)
    tail = expanded_tail(len(sets[0]), 0.9)
    return np.quantile(drawn, [tail, 1 - tail])


@pytest.mark.parametrize(("p", "icc"), [(0.85, 0.1), (0.95, 0.3)])
def test_the_macro_score_covers_at_least_as_a_bootstrap_does(p, icc):
    random = np.random.default_rng(7)
    rows = []
    for _ in range(500):
        sets = answers_by_template(random, p, icc, sets=4)
        found, (low, high) = macro(sets), bootstrap(random, sets)
        rows.append((found.low > p, found.high < p, low > p, found.high - found.low, high - low))
    too_high, too_low, boot_too_high, width, boot_width = np.mean(rows, axis=0)
    assert too_high <= min(0.07, boot_too_high + 0.01)
    assert too_low <= 0.11
    assert width == pytest.approx(boot_width, rel=0.06)


def test_templates_that_canaries_share_make_the_interval_wider():
    random = np.random.default_rng(8)
    same = answers_by_template(random, 0.8, 0.3)[0]
    apart, shared = macro([same] * 4), macro([same] * 4, offset=0)
    # four copies of one canary tell no more than one
    alone = macro([same])
    assert shared.high - shared.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert apart.high - apart.low == pytest.approx((alone.high - alone.low) / 2, rel=1e-9)
    assert (shared.n_clusters, apart.n_clusters) == (40, 160)


def test_seeds_vary_too():
    random = np.random.default_rng(9)
    # trainings differ by .05, items by template: does the interval hold the mean over all trainings?
    outside, alone_outside = [], []
    templates = np.repeat(np.arange(40), 10)
    for _ in range(300):
        means = 0.8 + 0.05 * random.standard_normal(3)
        answered = np.array([answers_by_template(random, mean, 0.1)[0].ravel() for mean in means])
        found = macro_score([Answers(answered, templates)])
        outside.append(not found.score.low <= 0.8 <= found.score.high)
        items = clustered_share(answered.mean(0), templates)
        alone_outside.append(not items.low <= 0.8 <= items.high)
        assert found.worst.value == min(found.by_seed)
    assert np.mean(outside) <= 0.12
    # negative control: items alone
    assert np.mean(alone_outside) > 0.25


def test_one_seed_is_that_of_its_items_and_unequal_seeds_are_refused():
    answers = Answers(np.ones((1, 40)), np.repeat(np.arange(20), 2))
    found = macro_score([answers])
    assert found.score == found.worst
    assert found.score.ci == clustered_share(answers.credits[0], answers.clusters).ci
    with pytest.raises(ValueError, match="same trainings"):
        macro_score([answers, Answers(np.ones((2, 40)), answers.clusters)])
    with pytest.raises(ValueError, match=r"\[seeds, items\]"):
        Answers(np.ones(40), answers.clusters)


def test_a_seed_that_broke_is_the_worst():
    answered = np.ones((2, 40))
    answered[1, 3] = math.nan
    found = macro_score([Answers(answered, np.repeat(np.arange(20), 2))])
    assert math.isnan(found.score.value)
    assert math.isnan(found.worst.value)
    assert found.by_seed[0] == 1.0
