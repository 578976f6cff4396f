"""What the chunked forms share: cutting positions into chunks, and sums that leave out their own position."""

import torch
from torch import Tensor
from torch.nn import functional as F


def chunk_length(T: int, longest: int) -> int:
    """The chunk for ``T`` positions: ``longest`` (a power of two), or the next power of two of a short input."""
    return min(longest, 1 << (T - 1).bit_length())


def to_chunks(tensor_BT: Tensor, chunk: int) -> Tensor:
    """``[B, T, ...]`` to ``[B, chunks, chunk, ...]``, padded with zeros: log decay 0, nothing written, nothing read."""
    T = tensor_BT.shape[1]
    padding = -T % chunk
    if padding:
        tensor_BT = F.pad(tensor_BT, [0, 0] * (tensor_BT.dim() - 2) + [0, padding])
    return torch.unflatten(tensor_BT, 1, ((T + padding) // chunk, chunk))


def sum_before(tensor: Tensor, dim: int) -> Tensor:
    """Sum of the earlier entries along ``dim`` (negative), without the entry's own. Adds, never subtracts."""
    shifted = F.pad(tensor.narrow(dim, 0, tensor.shape[dim] - 1), [0, 0] * (-dim - 1) + [1, 0])
    return shifted.cumsum(dim)


def sum_after(tensor: Tensor, dim: int) -> Tensor:
    """Sum of the later entries along ``dim`` (negative), without the entry's own."""
    return sum_before(tensor.flip(dim), dim).flip(dim)


def into_right_half(tensor: Tensor, half: int) -> Tensor:
    """``[..., blocks, half, D]`` to ``[..., blocks * 2 half, D]``: zeros in the left half of every block."""
    return F.pad(tensor, [0, 0, half, 0]).flatten(-3, -2)
