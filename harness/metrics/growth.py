"""Does a state grow without end? Sizes by position and by step, against what its own decays would accumulate."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio

SETTLED_TAUS = 5
"""Timescales after which a state has filled to within 1 % of where its decays let it end."""

MIN_POINTS = 4
"""Fewer sizes than this say nothing of how they vary."""


def head_energy(state: Tensor) -> Tensor:
    """Mean square of the entries of each head, ``[B, H, ...] -> [B, H]`` fp64; a state ``[B, D]`` is one head."""
    state_BHx = (state if state.ndim > 2 else state[:, None]).flatten(2)
    energy_BH: Tensor = state_BHx.double().square().mean(-1)
    return energy_BH


def size_ratio(later: ArrayLike, earlier: ArrayLike, documents: ArrayLike, *, seed: int) -> Interval:
    """N(later) / N(earlier), unit 1, from energies ``[n]`` of n texts at two positions; N is the root of their mean.

    The interval resamples the documents of the texts. NaN when a text has no finite energy, or the earlier are all 0.
    """
    ratio = bootstrap_ratio(ClusterRatio.of(later, earlier, documents), seed=seed)
    low, high = (math.copysign(math.sqrt(abs(bound)), bound) for bound in ratio.ci)
    return Interval(math.sqrt(ratio.value), low, high, ratio.n, ratio.n_clusters)


def growth_exponent(positions: Sequence[int], sizes: ArrayLike) -> NDArray[np.float64]:
    r"""Least-squares slope of ln N against ln t, ``[..., P] -> [...]``: N ~ t^slope. Unit 1.

    0 for a state that has settled, 1/2 for independent writes that nothing decays, 1 for writes all alike, lambda t for
    e^(lambda t). NaN where a size is zero or not finite.
    """
    x_P = np.log(np.asarray(positions, np.float64))
    assert len(x_P) > 1
    centred_P = x_P - x_P.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        y_P = np.log(np.asarray(sizes, np.float64))
        y_P = np.where(np.isfinite(y_P), y_P, np.nan)
        slopes: NDArray[np.float64] = (y_P * centred_P).sum(-1) / (centred_P**2).sum()
    return slopes


def coherent_sizes(decays_BTx: Tensor, positions: Sequence[int]) -> Tensor:
    r"""What unit writes that all point the same way accumulate to: ``[B, T, H(, K)] -> [B, P, H]`` fp64.

        a_t = min(w_t, 1) a_{t-1} + 1,    size of a head: RMS of a over its channels K

    No text can make a head grow faster under these decays than such writes do. Decays above 1 count as 1: a head must
    not excuse its own explosion. ``positions`` count tokens read, from 1.
    """
    decays = decays_BTx.double().clamp(max=1)
    decays = decays if decays.ndim > 3 else decays[..., None]
    held = torch.zeros_like(decays[:, 0])
    sizes = []
    wanted = set(positions)
    for position in range(1, max(positions) + 1):
        held = decays[:, position - 1] * held + 1
        if position in wanted:
            sizes.append(held.square().mean(-1).sqrt())
    return torch.stack(sizes, 1)


def slowest_timescale(log_decay: Tensor) -> Tensor:
    """Tokens until the slowest channel of each head has decayed to 1/e, ``[H(, K)] -> [H]`` fp64.

    Of mean logarithms of the decays; infinite for a channel that never decays, or grows.
    """
    rate = -log_decay.double()
    rate_HK = rate if rate.ndim > 1 else rate[:, None]
    tau_H: Tensor = torch.where(rate_HK > 0, 1 / rate_HK, torch.inf).amax(-1)
    return tau_H


def variation(sizes: ArrayLike) -> float:
    """Coefficient of variation of a series: standard deviation over mean, unit 1.

    0 for a constant; (r / sqrt 12) / (1 + r/2) for a ramp from 1 to 1 + r. NaN for fewer than ``MIN_POINTS``.
    """
    values = np.asarray(sizes, np.float64)
    if len(values) < MIN_POINTS or not np.isfinite(values).all() or not values.mean() > 0:
        return math.nan
    return float(values.std() / values.mean())
