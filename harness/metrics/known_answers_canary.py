"""Known answers of the canaries: scorers whose answers are known, joint rules, corrections, and what few items say."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import canary_score, clustered, forced_choice
from harness.metrics.canary_score import Answers
from harness.metrics.expect import expect, expect_between
from harness.metrics.intervals import Interval

CANARIES = (
    *("C1a", "C1b", "C1c", "C1d", "C2a", "C2b", "C3a", "C3b", "C3c"),
    *("C4a", "C4b", "C4c", "C5a", "C5b", "C5c", "C6a", "C6b", "CANARY"),
)

CANDIDATES = 10


@dataclass(frozen=True)
class MadeUp:
    """Items of two probes with three mentioned candidates each, gold among them; half of the items need one of two."""

    gold: NDArray[np.bool_]
    mentioned: NDArray[np.bool_]
    last: NDArray[np.int64]
    item: NDArray[np.int64]
    need: NDArray[np.int64]

    @classmethod
    def of(cls, items: int = 200) -> "MadeUp":
        """The gold value is the first, second or last that was mentioned, in turn."""
        random = np.random.default_rng(21)
        named = random.permuted(np.tile(np.arange(CANDIDATES), (2 * items, 1)), axis=1)[:, :3]
        rows = np.arange(2 * items)
        gold, mentioned = (np.zeros((2 * items, CANDIDATES), np.bool_) for _ in range(2))
        gold[rows, named[rows, rows % 3]] = True
        mentioned[rows[:, None], named] = True
        return cls(gold, mentioned, named[:, 2], rows // 2, 1 + np.arange(items) % 2)

    def accuracy(self, scores_nk: NDArray[np.float64]) -> float:
        """Share of items that hold."""
        right = forced_choice.credit(scores_nk, self.gold)
        return float(forced_choice.joint_credit(right, self.item, self.need).mean())


def with_prior(weights_nk: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log ratios of a scorer that multiplies a strong prior over candidates by what it read, and normalises."""
    prior = np.geomspace(1, 1000, weights_nk.shape[1])
    given, bare = (np.log(x / x.sum(1, keepdims=True)) for x in (weights_nk * prior, prior + 0 * weights_nk))
    return forced_choice.log_ratio(given, bare)


@known_answer(*CANARIES)
def reference_scorers_get_their_rates() -> None:
    """Oracle, guesser, always-last and bag of words, through likelihoods and a prior: the rates that were predicted."""
    items = MadeUp.of()
    rates = forced_choice.reference_rates(items.gold, items.mentioned, items.last, items.item, items.need)
    last = np.eye(CANDIDATES)[items.last]
    for name, raised, rate in (
        ("oracle", items.gold, rates.oracle),
        ("uniform", np.zeros_like(items.gold), rates.uniform),
        ("always last", last, rates.always_last),
        ("bag of words", items.mentioned, rates.bag_of_words),
    ):
        expect(f"accuracy of {name}", items.accuracy(with_prior(1 + 99.0 * raised)), rate, 1e-9)
    # by hand: two independent probes, both needed in half of the items and one in the other half
    expect("rate of guessing", rates.uniform, (0.1**2 + 1 - 0.9**2) / 2, 1e-12)
    expect("rate of a bag of words", rates.bag_of_words, (1 / 9 + 5 / 9) / 2, 1e-12)
    # negative control: raw likelihoods under the same prior always choose one candidate, fact or no fact
    raw = np.log((1 + 99.0 * items.gold) * np.geomspace(1, 1e6, CANDIDATES))
    expect_between("accuracy of an oracle with a prior, by raw likelihood", items.accuracy(raw), 0, 0.5)


@known_answer(*CANARIES)
def ties_are_worth_chance() -> None:
    """A scorer that cannot tell gets chance wherever the answer stands; a scorer that broke gets no number."""
    gold = np.eye(5, dtype=np.bool_)
    expect("all level", float(forced_choice.credit(np.zeros((5, 5)), gold).mean()), 0.2, 1e-12)
    two = np.array([[0.0, 0.0, -1.0, -2.0, -3.0]])
    expect("level with one other", float(forced_choice.credit(two, gold[:1])[0]), 0.5, 1e-12)
    expect("right is behind (negative control)", float(forced_choice.credit(two, gold[2:3])[0]), 0.0)
    either = forced_choice.gold_mask([(0, 3)], 5)
    expect("either of two is right", float(forced_choice.credit(np.array([[-5, -4, -3, -1, -2.0]]), either)[0]), 1.0)
    expect("a score that is NaN", float(forced_choice.credit(np.full((1, 5), np.nan), gold[:1])[0]), math.nan)


@known_answer(*CANARIES)
def joint_rules_are_exact() -> None:
    """All of m, at least r of m, with shares: the binomial by hand."""
    five = np.full(5, 0.9)
    for need, want in ((5, 0.9**5), (4, 0.9**5 + 5 * 0.9**4 * 0.1), (1, 1 - 0.1**5)):
        got = forced_choice.joint_credit(five, np.zeros(5, np.int64), np.array([need]))
        expect(f"{need} of 5 at .9", float(got[0]), want, 1e-12)
    three = forced_choice.joint_credit(np.array([1, 0, 1.0]), np.zeros(3, np.int64), np.array([3]))
    expect("all of three with one wrong (negative control)", float(three[0]), 0.0)


@known_answer("C3c", "C5c")
def a_stale_value_is_seen() -> None:
    """Three answers of ten are the old value, five the new, two neither: .3, and 3 / 8 of those that name one."""
    scores = np.log(np.full((10, 4), 0.1))
    scores[np.arange(10), [0, 0, 0, 1, 1, 1, 1, 1, 2, 3]] = 0
    found = forced_choice.reversion(scores, np.zeros(10, int), np.ones(10, int), np.arange(10))
    expect("share of old values", found.old.value, 0.3, 1e-12)
    expect("among those that name one", found.among_named.value if found.among_named else math.nan, 3 / 8, 1e-12)
    deaf = forced_choice.reversion(np.zeros((10, 4)), np.zeros(10, int), np.ones(10, int), np.arange(10))
    expect("of a guesser (negative control)", deaf.old.value, 0.25, 1e-12)


@known_answer(*CANARIES)
def templates_count_and_not_items() -> None:
    """Answers that differ by template alone are worth as many items as templates; the table of what must be seen."""
    templates = np.repeat(np.arange(40), 10)
    by_template = (templates % 4 != 0).astype(float)
    expect("ICC of answers by template", clustered.intraclass_correlation(by_template, templates), 1.0, 1e-12)
    alternating = (np.arange(400) % 2).astype(float)
    lowest = clustered.intraclass_correlation(alternating, templates)
    expect("ICC where templates are more alike than chance", lowest, -1 / 9, 1e-12)
    wide = clustered.clustered_share(by_template, templates)
    narrow = clustered.clustered_share(np.random.default_rng(3).permutation(by_template), templates)
    expect_between(
        "width by template over width by item", (wide.high - wide.low) / (narrow.high - narrow.low), 2.5, 3.5
    )
    for limit, share in ((0.5, 0.5425), (0.75, 0.7875), (0.8, 0.835), (0.85, 0.88), (0.9, 0.925), (0.95, 0.97)):
        expect(f"share of 400 that clears {limit:g}", clustered.smallest_passing(400, limit), share, 1e-12)
    expect("5 of 5 against .85 (negative control)", clustered.smallest_passing(5, 0.85), math.nan)
    unit = Interval(0.55, 0.1, 1.0, 1, 1)
    expect("kappa at chance .1", forced_choice.kappa(unit, 0.1).value, 0.5, 1e-12)


@known_answer(*CANARIES)
def canaries_and_seeds_are_averaged() -> None:
    """The macro score counts canaries alike; its interval has width at 1 and grows with the spread of seeds."""
    templates = np.repeat(np.arange(20), 5)
    rest = np.ones((2, 100))
    rest[0, :20] = 0
    found = canary_score.macro_score([Answers(np.ones((2, 100)), templates), Answers(rest, 50 + templates)])
    expect("mean of 1 and .9", found.score.value, 0.95, 1e-12)
    expect("the worse seed", found.worst.value, 0.9, 1e-12)
    alone = canary_score.macro_score([Answers(np.ones((1, 100)), templates)] * 3).score
    expect_between("low end with every answer right", alone.low, 0.9, 0.999)
    # two seeds .9 and 1: Student's half with one degree of freedom is 6.314 * .05
    expect_between("half of the interval of two seeds", found.score.value - found.score.low, 0.315, 0.33)
    broken = canary_score.macro_score([Answers(np.full((1, 100), np.nan), templates)]).score
    expect("macro of a broken model (negative control)", broken.value, math.nan)
