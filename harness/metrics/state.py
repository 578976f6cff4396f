"""Signs of life of a recurrent state: new content, dependence on the input, room left in gates and decays."""

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from harness.metrics.intervals import ClusterRatio

# Beyond |z| = 5 a sigmoid passes less than .7 % of its gradient
SATURATED_LOGIT = 5.0
# A decay below the first forgets within a token; one above 1 minus the second keeps for more than 10^4 tokens
SHORT_DECAY = 0.01
LONG_DECAY_GAP = 1e-4
# Rounding leaves a channel that is switched off far below this share of the largest one
SILENT_SHARE = 1e-6


@dataclass(frozen=True)
class DecaySaturation:
    """Shares of decays at the ends of their range. Both NaN when a decay is not finite."""

    short: float
    long: float


def innovation(state: Tensor, previous: Tensor, decay: Tensor) -> Tensor:
    r"""Share of a state that is new, over the last two dimensions: ``[..., K, V] -> [...]`` fp64.

        iota_t = ||S_t - A_t * S_{t-1}|| / ||S_t||

    ``decay`` broadcasts against the state. Independent writes under a constant decay w give iota^2 = 1 - w^2.
    Unlike the cosine of neighbouring states, which is w itself, it does not fail a head for a long memory as such.
    NaN for a zero state.
    """
    new = state.double() - decay.double() * previous.double()
    share: Tensor = torch.linalg.matrix_norm(new) / torch.linalg.matrix_norm(state.double())
    return share


def effective_decay(innovations: Tensor) -> Tensor:
    """Constant decay that would show these innovations under independent writes: sqrt(1 - iota^2).

    Innovations above 1 (a write against the state) give 0: nothing of the past is left.
    """
    return (1 - innovations.double() ** 2).clamp(min=0).sqrt()


def timescale(decay: Tensor) -> Tensor:
    """Tokens until a state has decayed to 1/e, -1 / ln w: 0 for w = 0, infinite for w = 1. fp64."""
    return -1 / decay.double().log()


def mean_timescale(decays_BTx: Tensor) -> Tensor:
    """Timescale of the geometric mean of decays over batch and positions, ``[B, T, ...] -> [...]`` in tokens.

    The geometric mean is the one constant decay that forgets as much over the same text.
    """
    return -1 / decays_BTx.double().log().mean(dim=(0, 1))


def rms(values: Tensor) -> float:
    """Root mean square of all entries, in their unit; fp64 inside. NaN when empty."""
    return float(values.double().square().mean().sqrt())


def input_sensitivity(states: Tensor, documents: ArrayLike) -> ClusterRatio:
    r"""How much of a state depends on what was read, at one position of n texts: ``[n, ...]``.

        rho = E ||S - S_bar||^2 / E ||S||^2,    S_bar the mean over the n texts

    Unit 1, in [0, 1]. A state that is the same whatever is read gives 0, independent zero-mean states (n-1)/n.
    ``documents [n]`` is the document of each text: intervals resample documents. For writes ``[n, T, D]`` the mean
    is taken at each position on its own. The value is NaN when every state is zero, or one is not finite.
    """
    flat = states.detach().reshape(states.shape[0], -1).double()
    varying = (flat - flat.mean(0)).square().sum(-1)
    return ClusterRatio.of(varying.cpu().numpy(), flat.square().sum(-1).cpu().numpy(), documents)


def silent_channels(writes: Tensor) -> float:
    """Share of channels that never write: ``[..., D]``, a channel below 1e-6 of the largest entry throughout. Unit 1.

    NaN when nothing is written at all, or an entry is not finite.
    """
    magnitude_D = writes.detach().abs().reshape(-1, writes.shape[-1]).amax(0)
    largest = magnitude_D.max()
    if not bool(largest > 0) or not bool(largest.isfinite()):
        return math.nan
    return float((magnitude_D < SILENT_SHARE * largest).double().mean())


def gate_saturation(gate_logits: Tensor) -> float:
    """Share of mixing-gate pre-activations beyond ``SATURATED_LOGIT`` in size. NaN when one is NaN or there is none."""
    magnitude = gate_logits.detach().abs()
    if magnitude.numel() == 0 or bool(magnitude.isnan().any()):
        return math.nan
    return float((magnitude > SATURATED_LOGIT).double().mean())


def decay_saturation(decays: Tensor) -> DecaySaturation:
    """Shares of decays (in [0, 1]) that keep next to nothing and next to everything."""
    values = decays.detach().double()
    if values.numel() == 0 or not bool(values.isfinite().all()):
        return DecaySaturation(math.nan, math.nan)
    short = (values < SHORT_DECAY).double().mean()
    long = (values > 1 - LONG_DECAY_GAP).double().mean()
    return DecaySaturation(float(short), float(long))
