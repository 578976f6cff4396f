"""wkv6 in chunks, in plain PyTorch: exact for every decay from 0 to 1, on any device.

Inside a chunk the pairs s < t are split by halving: a block of 2n positions takes the writes of its left half to its
right half by one product, (r_t * decay from the middle to t) (k_s * decay from s to the middle), and each half is
treated alike. Both factors are exponentials of sums of ``log_w``, never of differences, so each is in [0, 1] and
``log_w = -inf`` is not special. There is no mask: a position is multiplied only with earlier ones, so NaN stays causal.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.chunks import chunk_length, into_right_half, sum_after, sum_before, to_chunks

CHUNK = 64


def wkv6_chunked(
    r_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHV: Float[Tensor, "B T H V"],
    log_w_BTHK: Float[Tensor, "B T H K"],
    u_HK: Float[Tensor, "H K"],
    initial_BHKV: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """RWKV-6 time mixing: see ``kernels.wkv6``. All tensors share one dtype, fp32 or fp64."""
    T = r_BTHK.shape[1]
    chunk = chunk_length(T, CHUNK)
    # [B, H, chunks, chunk, K or V]
    r, k, v, log_w = (to_chunks(t, chunk).movedim(3, 1) for t in (r_BTHK, k_BTHK, v_BTHV, log_w_BTHK))

    y = (r * u_HK[:, None, None] * k).sum(-1, keepdim=True) * v
    half = 1
    while half < chunk:
        y = y + _from_left_halves(r, k, v, log_w, half)
        half *= 2

    writes = (k * sum_after(log_w, -2).exp()).transpose(-1, -2) @ v
    decay = log_w.sum(-2).exp().unsqueeze(-1)
    states = [initial_BHKV]
    for index in range(r.shape[2]):
        states.append(decay[:, :, index] * states[-1] + writes[:, :, index])
    y = y + (r * sum_before(log_w, -2).exp()) @ torch.stack(states[:-1], dim=2)
    return y.flatten(2, 3)[:, :, :T].transpose(1, 2), states[-1]


def _from_left_halves(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, half: int) -> Tensor:
    """What the positions of every right half read from the writes of the left half of their block of ``2 half``."""
    blocks = (r.shape[-2] // (2 * half), 2, half)
    r_right = torch.unflatten(r, -2, blocks)[..., 1, :, :]
    k_left, v_left = (torch.unflatten(t, -2, blocks)[..., 0, :, :] for t in (k, v))
    log_w_left, log_w_right = torch.unflatten(log_w, -2, blocks).unbind(-3)
    scores = (r_right * sum_before(log_w_right, -2).exp()) @ (k_left * sum_after(log_w_left, -2).exp()).mT
    return into_right_half(scores @ v_left, half)
