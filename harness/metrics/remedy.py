"""Whether a remedy has moved a number: treated less untreated, paired by seed, over seeds and documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.metrics.intervals import LEVEL, Interval, t_interval

Word = Literal["moved", "not moved", "worse"]

LEAST_SHARE = 1e-6
"""Shares below this, and above 1 less this, count as this: a branch that is not felt at all has odds, too."""


@dataclass(frozen=True)
class Change:
    """What a remedy did to a number.

    difference  mean over the seeds of treated less untreated, 90 % interval over seeds and documents
    strict      the interval that the word is of: wide enough for all remedies of a study together
    word        moved: the number rose, all of ``strict`` above 0; worse: it fell; not moved: neither is certain
    """

    difference: Interval
    strict: tuple[float, float]
    word: Word


def difference(treated: Interval, untreated: Interval) -> Interval:
    """Treated less untreated of one seed, from two intervals over the same documents.

    As if the documents of the two were different ones: what is hard for both counts twice, so it is never too narrow
    where the two go together.
    """
    value = treated.value - untreated.value
    low = math.hypot(treated.value - treated.low, untreated.high - untreated.value)
    high = math.hypot(treated.high - treated.value, untreated.value - untreated.low)
    return Interval(value, value - low, value + high, treated.n, treated.n_clusters)


def share_of(part: Interval, rest: Interval) -> Interval:
    """``part / (part + rest)`` of two numbers that are not negative, with the ends that their intervals allow.

    The ends are those of the worst case, both numbers at the far ends at once. NaN where both are 0.
    """

    def over(first: float, second: float) -> float:
        first, second = max(first, 0.0), max(second, 0.0)
        if math.isinf(first) or math.isinf(second):
            return math.nan if math.isinf(first) and math.isinf(second) else float(math.isinf(first))
        return first / (first + second) if first + second else math.nan

    value = over(part.value, rest.value)
    if not math.isfinite(value):
        return Interval(math.nan, math.nan, math.nan, part.n, part.n_clusters)
    ends = over(part.low, rest.high), over(part.high, rest.low)
    low, high = (value if math.isnan(end) else end for end in ends)
    return Interval(value, low, high, part.n, part.n_clusters)


def log_odds(share: Interval) -> Interval:
    """``ln(f / (1 - f))`` of a share and of its ends, nats; the other branch's is its negative.

    Shares from one in a thousand to one half differ in how much they scatter as they do in size; their odds do not.
    """

    def of(value: float) -> float:
        inside = min(max(value, LEAST_SHARE), 1 - LEAST_SHARE) if not math.isnan(value) else value
        return math.log(inside / (1 - inside))

    return Interval(of(share.value), of(share.low), of(share.high), share.n, share.n_clusters)


def change(differences: Sequence[Interval], *, family: int) -> Change:
    """The change from one difference a seed, each with its interval over documents; ``family`` remedies are compared.

    half-width  sqrt(t^2 s^2 / n + h^2): Student's over the n seeds, and the mean half-width over documents, which all
    seeds share and more seeds do not make smaller. The word's interval has the level 1 - .1 / family (Bonferroni), h
    widened as for a normal law. A number that is not finite gives NaN bounds and is not moved.
    """
    from scipy.special import ndtri

    assert differences
    assert family >= 1
    values = [found.value for found in differences]
    n, clusters = len(values), min(found.n_clusters for found in differences)
    mean = sum(values) / n
    if not math.isfinite(mean):
        return Change(Interval(mean, math.nan, math.nan, n, clusters), (math.nan, math.nan), "not moved")
    documents = sum(max(found.value - found.low, found.high - found.value) for found in differences) / n
    strict_level = 1 - (1 - LEVEL) / family
    halves = []
    for level in (LEVEL, strict_level):
        over_seeds = t_interval(values, level)
        widened = documents * float(ndtri(0.5 + level / 2) / ndtri(0.5 + LEVEL / 2))
        halves.append(math.hypot(over_seeds.high - mean, widened))
    usual, strict = ((mean - half, mean + half) for half in halves)
    word: Word = "moved" if strict[0] > 0 else "worse" if strict[1] < 0 else "not moved"
    return Change(Interval(mean, *usual, n, clusters), strict, word)
