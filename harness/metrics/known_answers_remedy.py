"""Known answers of FIX: a planted change gets its word, and a remedy that does nothing has moved nothing."""

import math

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import remedy
from harness.metrics.expect import expect, expect_between
from harness.metrics.intervals import Interval

REMEDIES, SEEDS, DRAWS = 3, 3, 2000
EXACT = 1e-12


def _exactly(*values: float) -> list[Interval]:
    """One difference a seed that the documents leave no doubt of."""
    return [Interval(value, value, value, 64, 16) for value in values]


def _is(found: remedy.Change, word: str) -> float:
    return float(found.word == word)


@known_answer("FIX")
def a_planted_change_gets_its_word() -> None:
    """Up is moved, down is worse, and the interval is Student's, widened by what the documents leave open."""
    up = remedy.change(_exactly(0.30, 0.32, 0.28), family=REMEDIES)
    expect("moved", _is(up, "moved"), 1)
    # 2.919986 is the 95th percentile of Student's t with 2 degrees of freedom, .02 the deviation of the three
    expect("half-width", up.difference.high - 0.3, 2.919986 * 0.02 / math.sqrt(3), 1e-6)
    expect("worse", _is(remedy.change(_exactly(-0.30, -0.32, -0.28), family=REMEDIES), "worse"), 1)
    doubtful = [Interval(v, v - 0.5, v + 0.5, 64, 16) for v in (0.30, 0.32, 0.28)]
    unsure = remedy.change(doubtful, family=REMEDIES)
    expect("not moved where documents differ more", _is(unsure, "not moved"), 1)
    half = math.hypot(2.919986 * 0.02 / math.sqrt(3), 0.5)
    expect("half-width with documents", unsure.difference.high - 0.3, half, 1e-6)
    # three seeds that agree by half are certain for one remedy and not for three
    half_sure = _exactly(0.1, 0.2, 0.3)
    expect("one remedy", _is(remedy.change(half_sure, family=1), "moved"), 1)
    expect("one of three", _is(remedy.change(half_sure, family=REMEDIES), "not moved"), 1)


@known_answer("FIX")
def a_remedy_that_does_nothing_has_moved_nothing() -> None:
    """Negative control: none at all is not moved; by chance one of three gets another word in at most 10 % of studies.

    The three are compared with the same untreated trainings, of three seeds each.
    """
    expect("the same training", _is(remedy.change(_exactly(0, 0, 0), family=REMEDIES), "not moved"), 1)
    expect("a share that does not exist", _is(remedy.change(_exactly(0.3, math.nan, 0.3), family=1), "not moved"), 1)
    expect("a single seed", _is(remedy.change(_exactly(0.3), family=1), "not moved"), 1)
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(DRAWS):
        untreated, *treated = 0.01 * rng.standard_normal((1 + REMEDIES, SEEDS))
        words = [remedy.change(_exactly(*(t - untreated)), family=REMEDIES).word for t in treated]
        called += any(word != "not moved" for word in words)
    expect_between("studies of nothing that call something moved or worse", called / DRAWS, 0.06, 0.115)


@known_answer("FIX")
def shares_and_differences_are_no_narrower_than_their_parts() -> None:
    """A share has the ends that its parts allow, and a difference the half-widths of both, squared and added."""
    share = remedy.share_of(Interval(1.0, 0.5, 2.0, 8, 4), Interval(3.0, 2.0, 4.0, 8, 4))
    expect("share", share.value, 0.25)
    expect("its lower end", share.low, 0.5 / 4.5, EXACT)
    expect("its upper end", share.high, 0.5)
    silent = Interval(0.0, 0.0, 0.0, 8, 4)
    expect("share of nothing", remedy.share_of(silent, silent).value, math.nan)
    expect("share of a silent branch", remedy.share_of(silent, share).value, 0.0)
    found = remedy.difference(Interval(0.5, 0.4, 0.9, 8, 4), Interval(0.1, 0.07, 0.4, 8, 4))
    expect("difference", found.value, 0.4, EXACT)
    expect("its lower end", found.low, 0.4 - math.hypot(0.1, 0.3), EXACT)
    expect("its upper end", found.high, 0.4 + math.hypot(0.4, 0.03), EXACT)
    odds = remedy.log_odds(Interval(0.2, 0.1, 0.5, 8, 4))
    expect("log odds of one to four", odds.value, -math.log(4), EXACT)
    expect("their lower end", odds.low, -math.log(9), EXACT)
    expect("their upper end", odds.high, 0.0)
    other = remedy.log_odds(Interval(0.8, 0.5, 0.9, 8, 4))
    expect("those of the other branch", other.value, -odds.value, EXACT)
    expect("of a branch that is not felt", remedy.log_odds(silent).value, math.log(1e-6 / (1 - 1e-6)), EXACT)


@known_answer("FIX")
def a_share_that_grows_by_as_much_in_every_seed_is_moved_whatever_its_size() -> None:
    """About hundredfold odds, from shares that scatter by a third, are certain."""
    before = [Interval(f, f, f, 64, 16) for f in (0.0008, 0.0011, 0.0014)]
    after = [Interval(f, f, f, 64, 16) for f in (0.11, 0.07, 0.08)]
    pairs = list(zip(after, before, strict=True))
    odds = [remedy.difference(remedy.log_odds(a), remedy.log_odds(b)) for a, b in pairs]
    expect("by odds", _is(remedy.change(odds, family=REMEDIES), "moved"), 1)
    # negative control: the same shares in another order of the seeds are no change
    shuffled = [remedy.difference(remedy.log_odds(a), remedy.log_odds(b))
                for a, b in zip(before, before[1:] + before[:1], strict=True)]  # fmt: skip
    expect("the same shares", _is(remedy.change(shuffled, family=REMEDIES), "not moved"), 1)
