"""Two factors of two levels each, crossed, with equal replicates: what each does alone, and what only both do."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.intervals import LEVEL, Interval
from harness.metrics.trend import UnderpoweredError


@dataclass(frozen=True)
class Effect:
    """One effect of a two-by-two design.

    difference  level 1 minus level 0 (of the means), or for the interaction the difference of the differences
    f, p_value  F with 1 and ``free`` degrees of freedom, and its upper tail; NaN where nothing varies at all
    share       of the total sum of squares (eta squared)
    """

    difference: Interval
    f: float
    p_value: float
    share: float


@dataclass(frozen=True)
class TwoByTwo:
    """A two-way analysis of variance. ``free``: degrees of freedom of the noise; ``noise``: its standard deviation."""

    first: Effect
    second: Effect
    interaction: Effect
    noise: float
    free: int


def two_by_two(values: ArrayLike, *, level: float = LEVEL) -> TwoByTwo:
    r"""Analyse ``values [2, 2, replicates]``: first factor, second factor, seed.

        y_ijr = mu + a_i + b_j + (ab)_ij + noise,    F = contrast^2 / (n Var(contrast) / sigma^2 MSE)

    Every effect has one degree of freedom, so F = t^2 and the interval of the difference is Student's. Raises
    ``UnderpoweredError`` for fewer than two replicates (no noise to compare with) and for values that are not finite.
    Source  Fisher, "Statistical methods for research workers" (1925), chapter VII.
    """
    from scipy.special import fdtrc, stdtrit

    y_ijr = np.asarray(values, dtype=np.float64)
    assert y_ijr.shape[:2] == (2, 2)
    replicates = y_ijr.shape[2]
    if replicates < 2:
        raise UnderpoweredError(f"{replicates} replicate a cell: the noise cannot be told from the interaction")
    if not np.isfinite(y_ijr).all():
        raise UnderpoweredError("a cell holds a value that is not finite: no effect can be read from it")
    means_ij = y_ijr.mean(2)
    free = 4 * (replicates - 1)
    variance = float(((y_ijr - means_ij[:, :, None]) ** 2).sum()) / free
    total = float(((y_ijr - y_ijr.mean()) ** 2).sum())

    def effect(contrast: float, scale: float) -> Effect:
        """``scale`` times the sum of four cell means with signs: variance scale^2 * 4 sigma^2 / replicates."""
        spread = scale**2 * 4 * variance / replicates
        half = float(stdtrit(free, 0.5 + level / 2)) * math.sqrt(spread)
        squares = contrast**2 * replicates / (4 * scale**2)
        f = squares / variance if variance > 0 else (math.inf if squares > 0 else math.nan)
        tail = 0.0 if math.isinf(f) else float(fdtrc(1, free, f))
        interval = Interval(contrast, contrast - half, contrast + half, 4 * replicates, 4 * replicates)
        return Effect(interval, f, tail, squares / total if total > 0 else math.nan)

    first = float(means_ij[1].mean() - means_ij[0].mean())
    second = float(means_ij[:, 1].mean() - means_ij[:, 0].mean())
    both = float(means_ij[1, 1] - means_ij[0, 1] - means_ij[1, 0] + means_ij[0, 0])
    return TwoByTwo(effect(first, 0.5), effect(second, 0.5), effect(both, 1.0), math.sqrt(variance), free)
