"""How much of a recurrent state is new at each position: an observation, never part of a training step.

    iota_t = ||S_t - A_t S_{t-1}|| / ||S_t||       (Frobenius norms, one a head)

The state is walked position by position, because ||S_t|| has no cheaper exact form. For a steady decay w and
independent writes iota^2 = 1 - w^2. Where S_t is exactly zero no share exists and the value is NaN.
"""

import torch
from torch import Tensor


@torch.no_grad()
def wkv6_innovation(k_BTHK: Tensor, v_BTHV: Tensor, log_w_BTHK: Tensor, initial_BHKV: Tensor | None) -> Tensor:
    """Innovation of an RWKV-6 state, ``[B,T,H]``, in [0, inf): a write that cancels the state exceeds 1."""
    dtype = log_w_BTHK.dtype
    k_BTHK, v_BTHV, w_BTHK = k_BTHK.to(dtype), v_BTHV.to(dtype), log_w_BTHK.exp()
    return _walk(k_BTHK, v_BTHV, w_BTHK[..., None], initial_BHKV)


@torch.no_grad()
def ssd_innovation(x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, initial_BHPN: Tensor | None) -> Tensor:
    """Innovation of a Mamba-2 state, ``[B,T,H]``, in [0, inf): a write that cancels the state exceeds 1."""
    dtype, heads = dt_BTH.dtype, dt_BTH.shape[-1]
    B_BTHN = B_BTGN.to(dtype).repeat_interleave(heads // B_BTGN.shape[2], dim=2)
    return _walk(x_BTHP.to(dtype) * dt_BTH[..., None], B_BTHN, (dt_BTH * A_H).exp()[..., None, None], initial_BHPN)


def _walk(left_BTHI: Tensor, right_BTHJ: Tensor, decay_BTHI1: Tensor, initial_BHIJ: Tensor | None) -> Tensor:
    """Share of the rank-one write ``left right^T`` in the state that it makes."""
    batch, length, heads, rows = left_BTHI.shape
    shape = (batch, heads, rows, right_BTHJ.shape[-1])
    state_BHIJ = left_BTHI.new_zeros(shape) if initial_BHIJ is None else initial_BHIJ.to(left_BTHI.dtype)
    norm_BTH = left_BTHI.new_empty(batch, length, heads)
    for t in range(length):
        write_BHIJ = left_BTHI[:, t, :, :, None] * right_BTHJ[:, t, :, None, :]
        state_BHIJ = torch.addcmul(write_BHIJ, state_BHIJ, decay_BTHI1[:, t])
        norm_BTH[:, t] = torch.linalg.vector_norm(state_BHIJ, dim=(-2, -1))
    write_BTH = torch.linalg.vector_norm(left_BTHI, dim=-1) * torch.linalg.vector_norm(right_BTHJ, dim=-1)
    share_BTH: Tensor = write_BTH / norm_BTH
    return share_BTH
