"""SSD in chunks, in plain PyTorch: exact, on any device.

The chunk is split by halving as in ``wkv6_chunked``: every exponent is a sum of ``dt A``, so at most 0, and no masked
product carries NaN to earlier positions. The heads of a group share ``C B^T``: their values stand side by side
as the columns of one matrix, and the decays, which differ by head, scale rows of the factors instead of ``C B^T``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.chunks import chunk_length, into_right_half, sum_after, to_chunks

CHUNK = 64


def ssd_chunked(
    x_BTHP: Float[Tensor, "B T H P"],
    dt_BTH: Float[Tensor, "B T H"],
    A_H: Float[Tensor, " H"],
    B_BTGN: Float[Tensor, "B T G N"],
    C_BTGN: Float[Tensor, "B T G N"],
    initial_BHPN: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Mamba-2's recurrence: see ``kernels.ssd``. All tensors share one dtype, fp32 or fp64."""
    batch, T, H, P = x_BTHP.shape
    G, N = B_BTGN.shape[2:]
    heads = H // G
    chunk = chunk_length(T, CHUNK)
    B, C = (to_chunks(t, chunk).movedim(3, 1) for t in (B_BTGN, C_BTGN))  # [B, G, chunks, chunk, N]
    # [B, G, chunks, chunk, heads, P] and the same with P = 1
    x = torch.unflatten(to_chunks(x_BTHP * dt_BTH[..., None], chunk), 3, (G, heads)).movedim(3, 1)
    log_a = torch.unflatten(to_chunks((dt_BTH * A_H)[..., None], chunk), 3, (G, heads)).movedim(3, 1)

    y = (C * B).sum(-1)[..., None, None] * x
    half = 1
    while half < chunk:
        y = y + _from_left_halves(x, log_a, B, C, half)
        half *= 2

    writes = B.mT @ (x * sum_after(log_a, -3).exp()).flatten(-2)  # [B, G, chunks, N, heads P]
    decay = log_a.sum(3).exp().expand(-1, -1, -1, -1, P).flatten(-2).unsqueeze(-2)
    states = [initial_BHPN.reshape(batch, G, heads * P, N).mT]
    for index in range(x.shape[2]):
        states.append(decay[:, :, index] * states[-1] + writes[:, :, index])
    carried = torch.unflatten(C @ torch.stack(states[:-1], dim=2), -1, (heads, P))
    y = y + carried * log_a.cumsum(3).exp()
    y_BTHP = y.movedim(1, 3).flatten(3, 4).flatten(1, 2)[:, :T]
    return y_BTHP, states[-1].mT.reshape(batch, H, P, N)


def _from_left_halves(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, half: int) -> Tensor:
    """What the positions of every right half read from the writes of the left half of their block of ``2 half``."""
    blocks = (x.shape[3] // (2 * half), 2, half)
    scores = torch.unflatten(C, 3, blocks)[..., 1, :, :] @ torch.unflatten(B, 3, blocks)[..., 0, :, :].mT
    x_left = torch.unflatten(x, 3, blocks)[:, :, :, :, 0]
    log_a_left, log_a_right = torch.unflatten(log_a, 3, blocks).unbind(4)
    read = scores @ (x_left * sum_after(log_a_left, -3).exp()).flatten(-2)
    decayed = torch.unflatten(read, -1, x.shape[-2:]) * log_a_right.cumsum(-3).exp()
    return torch.unflatten(into_right_half(decayed.flatten(-2), half), -1, x.shape[-2:])
