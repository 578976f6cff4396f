"""Scores of canaries, alone and together: items share templates, and trainings differ in their seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import Interval, t_interval

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One canary as several trainings answered it.

    credits   ``[seeds, items]`` probability that the item was answered right, 0 or 1 but for ties
    clusters   ``[items]`` the template of each; the same label in two canaries is the same template
    """

    credits: FloatArray
    clusters: NDArray[np.generic]

    def __post_init__(self) -> None:
        if self.credits.ndim != 2 or self.credits.shape[1:] != self.clusters.shape or not self.credits.size:
            raise ValueError(
                f"credits {self.credits.shape} for templates {self.clusters.shape}: give [seeds, items] and [items]"
            )


@dataclass(frozen=True)
class CanaryScore:
    """Accuracy of one canary, or the mean over several.

    score   mean over seeds; items and seeds both vary. From one seed: these weights on other items
    worst   the seed with the lowest mean, its interval over items alone
    by_seed ``[seeds]``
    """

    score: Interval
    worst: Interval
    by_seed: tuple[float, ...]


def macro_score(canaries: Sequence[Answers]) -> CanaryScore:
    r"""Mean of the canaries' accuracies, each counting the same however many items it has; one canary is itself.

        value - low = hypot(f / C sqrt(sum_c (v_c - low_c)^2), seeds' half),      high likewise

    v_c, low_c, high_c  of each canary by ``clustered_share``. Distances of bounds that are independent add as roots of
    sums of squares, half by half (Zou & Donner, Stat. Med. 27 (2008) 1693). A bootstrap of templates gives the same
    between the ends (tests/harness/test_metrics_canary.py), and no width at all where every item is right.
    f  at least 1: what templates shared by several canaries add, from the deviations of each template summed over
       canaries against those of each canary alone
    seeds' half  Student's, over the seeds' means: two or three seeds resampled would show too little of their spread.
       A single seed has none, and the interval is that of the items; whoever judges it says so
    Raises ``ValueError`` unless all canaries have the same seeds. NaN in any credit makes the score NaN.
    """
    counts = sorted({len(each.credits) for each in canaries})
    if len(counts) != 1:
        raise ValueError(f"{len(canaries)} canaries with {counts} seeds: a mean needs the same trainings in all")
    seeds_SC = np.array([each.credits.mean(1) for each in canaries]).T
    by_seed = seeds_SC.mean(1)
    items = _over_items([each.credits.mean(0) for each in canaries], canaries)
    # NaN sorts as the lowest: a seed that broke is the worst
    lowest = int(np.argmin(np.where(np.isnan(by_seed), -np.inf, by_seed)))
    worst = _over_items([each.credits[lowest] for each in canaries], canaries)
    score = items
    if len(by_seed) > 1:
        half = t_interval(by_seed).high - items.value
        low = items.value - math.hypot(items.value - items.low, half)
        high = items.value + math.hypot(items.high - items.value, half)
        # an accuracy lies between 0 and 1; NaN passes through
        score = Interval(items.value, float(np.maximum(low, 0)), float(np.minimum(high, 1)), items.n, items.n_clusters)
    return CanaryScore(score, worst, tuple(by_seed.tolist()))


def _over_items(credits_C: Sequence[FloatArray], canaries: Sequence[Answers]) -> Interval:
    """Mean over canaries of ``credit [items]``, interval over their items."""
    shares = [clustered_share(credit, each.clusters) for credit, each in zip(credits_C, canaries, strict=True)]
    value = float(np.mean([share.value for share in shares]))
    inflation = _shared_templates(credits_C, canaries) / len(shares)
    low = value - inflation * math.hypot(*(share.value - share.low for share in shares))
    high = value + inflation * math.hypot(*(share.high - share.value for share in shares))
    clusters = len(np.unique(np.concatenate([each.clusters for each in canaries])))
    bounds = (float(np.maximum(low, 0)), float(np.minimum(high, 1)))
    return Interval(value, *bounds, sum(share.n for share in shares), clusters)


def _shared_templates(credits_C: Sequence[FloatArray], canaries: Sequence[Answers]) -> float:
    """Standard error with templates that canaries share, over the one without; at least 1."""
    deviations = [(credit - credit.mean()) / len(credit) for credit in credits_C]
    apart = sum(
        float((np.bincount(np.unique(each.clusters, return_inverse=True)[1], part) ** 2).sum())
        for part, each in zip(deviations, canaries, strict=True)
    )
    labels = np.unique(np.concatenate([each.clusters for each in canaries]), return_inverse=True)[1]
    together = float((np.bincount(labels, np.concatenate(deviations)) ** 2).sum())
    # all right or all wrong: nothing varies, and NaN compares as false
    return math.sqrt(together / apart) if together > apart > 0 else 1.0
