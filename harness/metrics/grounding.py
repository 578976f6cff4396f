"""Does a model ground what it says in what it was told? Three shares from likelihoods; nothing is generated."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import Interval

FloatArray = NDArray[np.float64]

Grade = Literal["A", "B", "C", ""]

A_ABOVE, B_ABOVE = 0.85, 0.7

EACH_AT_LEAST = 0.7
"""Each of the three shares must reach this: a mean may hide one that is at chance."""

UNMOVED = 0.5
"""A candidate whose log-probability the context moves by more than this, in nats, is asserted without a reason."""

LEVEL_WITHIN = 1e-9
"""Two statements closer than this, in nats, are level."""


@dataclass(frozen=True)
class Grounding:
    """Three shares, each counted alike.

    reference   stated facts answered right, by forced choice; chance is 1 / candidates
    novelty     questions about facts never stated for which the context moves no candidate beyond ``UNMOVED``:
                nothing is made up. A deaf model has 1 here, which is why no share counts alone
    consistency statements that follow from the context and are more likely than one that contradicts it; chance .5
    mean        of the three, bounds as of independent shares
    """

    reference: Interval
    novelty: Interval
    consistency: Interval
    mean: Interval

    @property
    def grade(self) -> Grade:
        """By the mean: A above .85, B above .7, else C; empty where there is no number."""
        if math.isnan(self.mean.value):
            return ""
        return "A" if self.mean.value > A_ABOVE else "B" if self.mean.value > B_ABOVE else "C"

    @property
    def grounded(self) -> bool:
        """Whether each of the three reaches ``EACH_AT_LEAST``; NaN does not."""
        return all(part.value >= EACH_AT_LEAST for part in (self.reference, self.novelty, self.consistency))


def grounding(reference: Interval, novelty: Interval, consistency: Interval) -> Grounding:
    """Join the three; the distances of the bounds of the mean are roots of sums of squares (Zou & Donner 2008)."""
    parts = (reference, novelty, consistency)
    value = sum(part.value for part in parts) / 3
    low = value - math.hypot(*(part.value - part.low for part in parts)) / 3
    high = value + math.hypot(*(part.high - part.value for part in parts)) / 3
    count = (sum(part.n for part in parts), sum(part.n_clusters for part in parts))
    return Grounding(*parts, Interval(value, low, high, *count))


def novelty(ratios_nk: ArrayLike, clusters_n: ArrayLike) -> Interval:
    """Share of items on unstated facts with ``max |log ratio| <= UNMOVED`` over the candidates.

    ratios_nk ``[n, k]`` as ``forced_choice.log_ratio`` gives them: with the dialogue against without it.
    """
    ratios = np.asarray(ratios_nk, np.float64)
    assert ratios.ndim == 2
    largest = np.abs(ratios).max(1)
    return clustered_share(np.where(np.isnan(largest), np.nan, largest <= UNMOVED), clusters_n)


def consistency(entailed_n: ArrayLike, contradicted_n: ArrayLike, clusters_n: ArrayLike) -> Interval:
    """Share of pairs with ``log p(entailed) > log p(contradicted)`` ``[n]``; a pair that is level counts one half.

    The two statements of a pair have equally many tokens, or their sums of log-probabilities compare lengths.
    """
    entailed, contradicted = np.asarray(entailed_n, np.float64), np.asarray(contradicted_n, np.float64)
    assert entailed.shape == contradicted.shape
    # both impossible is level too, though the difference is no number
    with np.errstate(invalid="ignore"):
        lead = np.where(entailed == contradicted, 0.0, entailed - contradicted)
    credit = np.where(np.abs(lead) <= LEVEL_WITHIN, 0.5, lead > 0)
    return clustered_share(np.where(np.isnan(lead), np.nan, credit), clusters_n)
