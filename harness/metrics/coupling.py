"""Gradient-state coupling: how far the loss moves, to first order, when a state is exchanged for another text's.

Unlike a norm of the state or of its gradient, the product of a gradient with the difference of two states that really
occur does not change when the state is rescaled and its readout undoes that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two strengths compared.

    ratio  the larger over the smaller; infinite when the smaller is 0, NaN when both are
    first, second  their shares K / (K_1 + K_2)
    """

    ratio: Interval
    first: Interval
    second: Interval


def mean_square(products_np: ArrayLike, documents: ArrayLike) -> ClusterRatio:
    """K^2 = E[(g . (S - S'))^2] / 2 by document, of products ``[n, positions]`` for n windows.

    With S and S' independent this is E[g' Sigma g], Sigma the covariance of the state over texts.
    """
    squares_np = np.square(np.asarray(products_np, dtype=np.float64)) / 2
    assert squares_np.ndim == 2
    return ClusterRatio.of(squares_np.sum(1), np.full(len(squares_np), squares_np.shape[1]), documents)


def strength(square: ClusterRatio, *, seed: int) -> Interval:
    """K in nats, with its interval over documents."""
    found = bootstrap_ratio(square, seed=seed)
    return _mapped(found, _root)


def compare(first: ClusterRatio, second: ClusterRatio, *, seed: int) -> Comparison:
    """Ratio and shares of two strengths from their squares by document; documents are resampled for both at once."""
    paired = ClusterRatio(first.numerators, second.numerators, first.n)
    if not second.numerators.any():
        # over nothing there is no ratio to resample: the first has all there is, or there is none
        value = 1.0 if first.numerators.any() else math.nan
        share = Interval(value, value, value, first.n, len(first.numerators))
    else:
        share = _mapped(bootstrap_ratio(paired, seed=seed), _share_of_square)
    other = Interval(1 - share.value, 1 - share.high, 1 - share.low, share.n, share.n_clusters)
    return Comparison(_ratio(share), share, other)


def rank_agreement(predicted: ArrayLike, true: ArrayLike) -> float:
    """Spearman's correlation of sizes: of ``|predicted|`` with ``|true|``. NaN when either does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(np.abs(np.asarray(values, dtype=np.float64)).ravel()) for values in (predicted, true)]
    centred = [rank - rank.mean() for rank in ranks]
    norms = [float(np.linalg.norm(rank)) for rank in centred]
    return float(centred[0] @ centred[1]) / (norms[0] * norms[1]) if min(norms) > 0 else math.nan


def distortion(linear: tuple[float, float], true: tuple[float, float]) -> float:
    """How far the linear ratio of two strengths lies from the true one, as a factor of at least 1.

    Equal errors of both cancel in the ratio and count for nothing. NaN when a strength is 0.
    """
    if min(*linear, *true) <= 0:
        return math.nan
    factor = linear[0] / linear[1] * true[1] / true[0]
    return max(factor, 1 / factor)


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """An interval under an increasing function."""
    value, low, high = (function(end) for end in (interval.value, interval.low, interval.high))
    return Interval(value, low, high, interval.n, interval.n_clusters)


def _root(square: float) -> float:
    """A square root that leaves NaN and the lower end of an unbounded interval in peace."""
    return math.sqrt(square) if square > 0 or math.isnan(square) else 0.0


def _share_of_square(square: float) -> float:
    """K_1 / (K_1 + K_2) from K_1^2 / K_2^2; the ends of an unbounded interval give 0 and 1."""
    if math.isnan(square):
        return math.nan
    if math.isinf(square):
        return float(square > 0)
    root = _root(square)
    return root / (1 + root)


def _ratio(share: Interval) -> Interval:
    """Larger over smaller strength from the share of one of them; down to 1 where the order is not certain."""

    def odds(value: float) -> float:
        larger = max(value, 1 - value)
        return larger / (1 - larger) if larger < 1 else math.inf

    if math.isnan(share.value):
        return Interval(math.nan, math.nan, math.nan, share.n, share.n_clusters)
    ends = sorted((odds(share.low), odds(share.high)))
    low = 1.0 if share.low <= 0.5 <= share.high else ends[0]
    return Interval(odds(share.value), low, ends[1], share.n, share.n_clusters)
