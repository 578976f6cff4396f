"""Has a state collapsed? Directions in which it varies over documents, and how much of its spectrum it uses."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from harness.metrics.intervals import LEVEL, Interval


def by_unit_head(states: Tensor) -> Tensor:
    """States ``[n, H, ...]`` of n texts with each head divided by its RMS over all of them: ``[n, E]`` fp64.

    Heads differ in scale by orders of magnitude and scale means nothing. A head that is zero throughout stays zero.
    """
    states_nHx = (states if states.ndim > 2 else states[:, None]).detach().double().flatten(2)
    rms_H = states_nHx.square().mean((0, 2)).sqrt()
    return (states_nHx / torch.where(rms_H > 0, rms_H, 1.0)[:, None]).flatten(1)


def participation_ratio(states_nE: Tensor) -> float:
    r"""In how many directions the states of n texts differ, unit directions: (sum l)^2 / sum l^2, l the eigenvalues of
    their covariance.

    1 when all differences lie on one line, about n d / (n + d) for Gaussian noise in d dimensions; at most n - 1.
    NaN when the states do not differ, or are not finite.
    """
    return _ratio(states_nE @ states_nE.T)


def _ratio(gram_nn: Tensor) -> float:
    """Of a Gram matrix: centred, it has the eigenvalues of the covariance, up to a factor."""
    centred_nn = gram_nn - gram_nn.mean(0) - gram_nn.mean(1, keepdim=True) + gram_nn.mean()
    trace, squares = float(centred_nn.trace()), float(centred_nn.square().sum())
    # centring leaves rounding behind where nothing varies
    varies = trace > 1e-12 * float(gram_nn.trace())
    return trace**2 / squares if varies and squares > 0 else math.nan


def participation_interval(states_nE: Tensor, documents: ArrayLike, level: float = LEVEL) -> Interval:
    """The participation ratio with its interval: delete-one-document jackknife of its logarithm, Student's quantiles.

    Not a bootstrap: a resample holds documents twice, and doubles take directions away.
    Source  Efron & Tibshirani, "An introduction to the bootstrap" (1993), section 11.5.
    """
    from scipy.special import stdtrit

    labels = np.asarray(documents)
    names = np.unique(labels)
    gram_nn = states_nE @ states_nE.T
    value, n, g = _ratio(gram_nn), len(labels), len(names)
    if not math.isfinite(value):
        return Interval(value, math.nan, math.nan, n, g)
    if g < 2:
        return Interval(value, -math.inf, math.inf, n, g)
    kept = [torch.from_numpy(np.flatnonzero(labels != name)) for name in names]
    left_out = np.log([_ratio(gram_nn[rows][:, rows]) for rows in kept])
    error = math.sqrt((g - 1) / g * float(np.square(left_out - left_out.mean()).sum()))
    factor = math.exp(float(stdtrit(g - 1, 0.5 + level / 2)) * error)
    # no state varies in less than one direction
    return Interval(value, max(value / factor, min(value, 1.0)), value * factor, n, g)


def participation_null(texts: int, entries: int) -> float:
    """Participation ratio of independent Gaussian states, n d / (n + d), unit directions."""
    return texts * entries / (texts + entries)


def utilisation(ranks: Tensor, shape: Sequence[int]) -> Tensor:
    """Spectral entropy of matrices ``[..., K, V]`` over the largest it could be, from their effective ranks.

    ln erank / ln min(K, V): 0 for one outer product, 1 for equal singular values, whatever the scale. Unit 1.
    """
    return ranks.log() / math.log(min(shape[-2:]))
