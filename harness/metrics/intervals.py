"""Intervals: what is resampled is the document, the seed or the stretch of steps, never the token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.trend import DETREND_DEGREE, TAUS_PER_BLOCK, autocorrelation_time, detrend

FloatArray = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.9


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval; n counts what was averaged, n_clusters what was resampled.

    The bounds are infinite when there is a single cluster or seed: one observation says nothing of its spread.
    """

    value: float
    low: float
    high: float
    n: int
    n_clusters: int

    @property
    def ci(self) -> tuple[float, float]:
        """The bounds, as a record takes them."""
        return self.low, self.high


@dataclass(frozen=True)
class ClusterRatio:
    """A ratio of sums, kept by cluster: sum of numerators over sum of denominators.

    Token means (summed loss over tokens), input sensitivity and activation shares all have this form.
    numerators, denominators  ``[clusters]`` fp64, the same clusters in the same order
    n                         windows, items or positions behind them, for the record
    """

    numerators: FloatArray
    denominators: FloatArray
    n: int

    @classmethod
    def of(cls, numerators: ArrayLike, denominators: ArrayLike, clusters: ArrayLike) -> "ClusterRatio":
        """Sum per-window values ``[n]`` by the cluster label of each window ``[n]``, labels in sorted order."""
        labels, index = np.unique(np.asarray(clusters), return_inverse=True)
        over = np.asarray(numerators, dtype=np.float64)
        under = np.asarray(denominators, dtype=np.float64)
        assert over.shape == under.shape == index.shape
        sums = np.zeros((2, len(labels)))
        np.add.at(sums[0], index, over)
        np.add.at(sums[1], index, under)
        return cls(sums[0], sums[1], len(over))

    @property
    def value(self) -> float:
        """The ratio; NaN where the denominators sum to zero."""
        total = float(self.denominators.sum())
        return float(self.numerators.sum()) / total if total else math.nan

    def minus(self, other: "ClusterRatio") -> "ClusterRatio":
        """Paired difference of two ratios over the same clusters and denominators, such as two models' losses."""
        if not np.array_equal(self.denominators, other.denominators):
            raise ValueError(
                "a paired difference needs the same clusters and denominators on both sides: "
                "measure both models on the same windows"
            )
        return ClusterRatio(self.numerators - other.numerators, self.denominators, self.n)


def pooled(ratios: Sequence[ClusterRatio]) -> ClusterRatio:
    """One ratio over layers: each layer's sums are scaled to a total denominator of 1, so that none drowns the others.

    States of different layers differ in scale by orders of magnitude, and scale means nothing.
    """
    # a layer whose sums are all zero has no ratio, and neither has the whole: NaN, which no limit admits
    totals = [r.denominators.sum() or np.nan for r in ratios]
    numerators = np.sum([r.numerators / total for r, total in zip(ratios, totals, strict=True)], axis=0)
    denominators = np.sum([r.denominators / total for r, total in zip(ratios, totals, strict=True)], axis=0)
    return ClusterRatio(numerators, denominators, ratios[0].n)


def expanded_tail(clusters: float, level: float) -> float:
    """Tail probability of a percentile interval that makes up for few clusters.

    The bootstrap spread is too small by sqrt((n-1)/n) and its quantiles are normal where Student's are due.
    Source  Hesterberg, "What teachers should know about the bootstrap", Am. Stat. 69 (2015) 371, section 3.3.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 - level) / 2)))


def bootstrap_ratio(ratio: ClusterRatio, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """Interval of a ratio of sums: expanded percentile bootstrap that resamples clusters with replacement.

    The same seed gives the same interval on any machine with the same numpy. Non-finite sums give NaN bounds.
    """
    value, clusters = ratio.value, len(ratio.numerators)
    if not math.isfinite(value):
        return Interval(value, math.nan, math.nan, ratio.n, clusters)
    if clusters < 2:
        return Interval(value, -math.inf, math.inf, ratio.n, clusters)
    draws = np.random.default_rng(seed).integers(0, clusters, size=(resamples, clusters))
    under = ratio.denominators[draws].sum(1)
    # a resample of nothing but empty clusters has no ratio
    drawn = ratio.numerators[draws].sum(1)[under != 0] / under[under != 0]
    tail = expanded_tail(clusters, level)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), ratio.n, clusters)


def design_effect(cluster_size: float, icc: float) -> float:
    """Variance inflation of items drawn in clusters: 1 + (m - 1) ICC (Kish, "Survey sampling", 1965, section 5.4)."""
    return 1 + (cluster_size - 1) * icc


def wilson(successes: float, n: int, *, deff: float = 1.0, level: float = LEVEL) -> Interval:
    """Wilson's interval of a proportion with n / deff effective items. ``ValueError`` when there is no item.

    Source  Wilson, J. Am. Stat. Assoc. 22 (1927) 209.
    """
    from scipy.special import ndtri

    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} items: a proportion needs at least one item and 0 <= k <= n")
    assert deff >= 1
    share, items = successes / n, n / deff
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    centre = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * items)) / items) / (1 + z2 / items)
    # the exact bound at k = 0 and k = n is 0 and 1; rounding must not move it
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, n, int(items))


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Student's interval of a mean over independent values, such as one a seed."""
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1
    assert len(array) > 0
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n, n)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, n)


def median_ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    seed: int,
    last: int = 200,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Median of the ratio of two positive series over their last steps; interval by block bootstrap on log ratios.

    Blocks are five autocorrelation times long, at most a quarter of the series, and wrap around. Nominal 90 %
    covers 91 % for white noise, 89 for AR(1) noise of phi = .5, 87 for .9 and 82 for .95 at 200 steps (simulated).
    A series with a zero or non-finite entry has no log: the value is then the plain median and the bounds NaN.
    """
    over = np.asarray(numerators, dtype=np.float64)[-last:]
    under = np.asarray(denominators, dtype=np.float64)[-last:]
    n = len(over)
    if n < 8 or over.shape != under.shape:
        raise ValueError(f"{n} steps against {len(under)}: the interval needs two series of at least 8 steps each")
    with np.errstate(divide="ignore", invalid="ignore"):
        plain, logs = over / under, np.log(over / under)
    if not np.all(np.isfinite(logs)):
        return Interval(float(np.median(plain)), math.nan, math.nan, n, 0)
    tau = autocorrelation_time(detrend(np.arange(1, n + 1), logs), fitted=DETREND_DEGREE + 1)
    length = math.ceil(min(max(TAUS_PER_BLOCK * tau, n ** (1 / 3)), n // 4))
    starts = np.random.default_rng(seed).integers(0, n, size=(resamples, -(-n // length)))
    index = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :n] % n
    medians = np.median(logs[index], axis=1)
    tail = expanded_tail(n / length, level)
    low, high = np.exp(np.quantile(medians, [tail, 1 - tail]))
    return Interval(float(np.exp(np.median(logs))), float(low), float(high), n, n // length)
