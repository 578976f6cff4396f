"""Gradient norms by branch and what their ratio says, which is less than it seems: see docs/metrics.md, G4."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from harness.metrics.intervals import Interval, median_ratio_interval


@dataclass(frozen=True)
class GradientSummary:
    """Pre-clip global gradient norms over the last steps of a training.

    median          in the unit of the norm; depends on batch and size, so compare it within one preset only
    p99_over_median tail weight, comparable across sizes
    clip_fraction   share of steps whose norm exceeded the clip
    """

    median: float
    p99_over_median: float
    clip_fraction: float


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Root of the summed squares of the gradients of these parameters, a scalar on their device: no synchronisation.

    A parameter without a gradient counts as zero. Call it before clipping, after any unscaling.
    """
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def gradient_norms(
    parameters: Sequence[nn.Parameter], groups: Mapping[str, Sequence[nn.Parameter]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """``gradient_norm`` of all ``parameters`` and of each group of them; every gradient is read once."""
    grads = {id(p): p.grad for p in parameters if p.grad is not None}
    norms = dict(zip(grads, torch._foreach_norm(list(grads.values())), strict=True)) if grads else {}

    def joint(members: Sequence[nn.Parameter]) -> Tensor:
        found = [norms[id(p)] for p in members if id(p) in norms]
        if not found:
            return torch.zeros((), device=parameters[0].device)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(found))
        return norm

    return joint(parameters), {name: joint(members) for name, members in groups.items()}


def gradient_summary(norms: ArrayLike, clip: float, last: int = 200) -> GradientSummary:
    """Summarise the last pre-clip norms. All NaN when there is none or one is not finite."""
    values = np.asarray(norms, dtype=np.float64)[-last:]
    if len(values) == 0 or not np.all(np.isfinite(values)):
        return GradientSummary(math.nan, math.nan, math.nan)
    median, p99 = np.quantile(values, [0.5, 0.99])
    tail = float(p99 / median) if median > 0 else math.nan
    return GradientSummary(float(median), tail, float(np.mean(values > clip)))


def gradient_ratio(g_rwkv: ArrayLike, g_mamba: ArrayLike, *, seed: int, last: int = 200) -> Interval:
    """Median ratio of two branches' gradient norms over the last steps: RWKV-6 over Mamba-2, unit 1.

    Above 1 the gradients of RWKV-6 are the larger ones. Not a measure of contribution: replacing W by cW in
    one branch and undoing it at its output leaves the model as it is and moves this ratio by 1/c.
    The same function gives ``r_upd`` from two series of relative update norms ||dW|| / ||W||.
    """
    return median_ratio_interval(g_rwkv, g_mamba, seed=seed, last=last)


def per_parameter_ratio(ratio: float, n_rwkv: int, n_mamba: int) -> float:
    """Turn a ratio of norms into one of root mean squares, for branches of ``n_rwkv`` and ``n_mamba`` parameters."""
    assert n_rwkv > 0
    assert n_mamba > 0
    return ratio * math.sqrt(n_mamba / n_rwkv)
