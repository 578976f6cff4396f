"""Size of a recurrent state against what was written into it, and how far two states lie apart."""

import torch
from torch import Tensor


def memory_length(decays_BTx: Tensor) -> Tensor:
    r"""How many past writes a state holds, by energy: ``[B, T, ...] -> [B, T, ...]`` fp64, in writes.

        n_t = sum_{s <= t} prod_{s < u <= t} w_u^2,   that is  n_t = 1 + w_t^2 n_{t-1}

    For a constant decay w it is (1 - w^2t) / (1 - w^2), and t for w = 1. Independent writes of equal size give
    RMS(S_t) = RMS(write) sqrt(n_t). ``decays`` multiply the state at each position; the state before the first is zero.
    """
    squared = decays_BTx.double().square()
    lengths = torch.empty_like(squared)
    held = torch.zeros_like(squared[:, 0])
    for position in range(squared.shape[1]):
        held = 1 + squared[:, position] * held
        lengths[:, position] = held
    return lengths


def write_ratio(state_energy_BH: Tensor, write_energy_BPH: Tensor, memory_BH: Tensor) -> Tensor:
    r"""Size of each head's state against independent writes of the size seen: ``[H]`` fp64, unit 1.

        RMS(S_t) / (RMS(write) sqrt(n_t))

    over the texts of a batch. ``state_energy [B,H]`` is the mean square of the entries at t, ``write_energy [B,P,H]``
    that of what was added at some positions up to t, ``memory [B,H]`` is n_t. 1 for independent writes, up to sqrt(n_t)
    for writes that are all alike, less where writes cancel. NaN for a head that was never written and is zero.
    """
    size_H = state_energy_BH.double().mean(0)
    return (size_H / (write_energy_BPH.double().mean((0, 1)) * memory_BH.double().mean(0))).sqrt()


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""How far two states lie apart: ``[n, ...]`` twice ``-> [n]`` fp64, in [0, 2].

        d = 2 ||a - b|| / (||a|| + ||b||)

    0 for equal states, sqrt(2) for independent ones of mean zero and equal size, 2 for opposite ones; no scale of the
    state changes it. NaN when both are zero.
    """
    x_nE, y_nE = a.double().flatten(1), b.double().flatten(1)
    distance_n: Tensor = 2 * (x_nE - y_nE).norm(dim=1) / (x_nE.norm(dim=1) + y_nE.norm(dim=1))
    return distance_n


def headroom(state: Tensor) -> float:
    """Largest number of the state's dtype over its largest entry, unit 1; infinite for a zero state, NaN for NaN."""
    largest = float(state.abs().max())
    return torch.finfo(state.dtype).max / largest if largest != 0 else float("inf")
