"""One number from trainings that differ in their seed alone: the spread of documents and that of seeds, together."""

import math
from collections.abc import Sequence

import numpy as np

from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio, t_interval


def across_seeds(ratios: Sequence[ClusterRatio], *, seed: int) -> Interval:
    """Mean over seeds of ratios of sums on the same documents, such as the difference of two models' losses.

    Documents are resampled, all seeds with them; the spread of seeds is Student's; the two halves of the interval are
    each the root of the sum of the squares of both (Zou & Donner, Stat. Med. 27 (2008) 1693, section 2). From a single
    seed nothing is known of the spread of seeds: the interval is then that of the documents alone, and whoever judges
    it says so. ``seed`` is that of the bootstrap. Raises ``ValueError`` unless all ratios have the same documents.
    """
    if len({len(ratio.numerators) for ratio in ratios}) != 1:
        raise ValueError(
            f"{len(ratios)} ratios over {sorted({len(r.numerators) for r in ratios})} documents: a mean over seeds "
            "needs at least one seed and the same documents for all; measure them on the same windows"
        )
    mean = ClusterRatio(
        np.mean([ratio.numerators for ratio in ratios], axis=0),
        np.mean([ratio.denominators for ratio in ratios], axis=0),
        ratios[0].n,
    )
    documents = bootstrap_ratio(mean, seed=seed)
    if len(ratios) == 1:
        return documents
    values = t_interval([ratio.value for ratio in ratios])
    half = values.high - values.value
    low = documents.value - math.hypot(documents.value - documents.low, half)
    high = documents.value + math.hypot(documents.high - documents.value, half)
    return Interval(documents.value, low, high, documents.n, documents.n_clusters)


def geometric_mean(ratios: Sequence[Interval]) -> Interval:
    """Geometric mean of one positive ratio a seed, Student's interval on the logarithms.

    What each ratio does not know of itself is part of the spread of seeds and is not added again. A single ratio keeps
    its own interval. A ratio of 0 makes the mean 0, one that is not finite makes it NaN; such a mean has bounds of NaN
    and no clusters, as ``median_ratio_interval`` has it.
    """
    assert ratios
    if len(ratios) == 1:
        return ratios[0]
    values = np.array([ratio.value for ratio in ratios])
    n = sum(ratio.n for ratio in ratios)
    if not np.all(np.isfinite(values)) or np.any(values <= 0):
        value = 0.0 if np.all(np.isfinite(values)) else math.nan
        return Interval(value, math.nan, math.nan, n, 0)
    logs = t_interval(np.log(values))
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), n, len(ratios))
