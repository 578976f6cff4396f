"""The definition of correct: each operation written as its equations are, recurrences as a loop over positions.

Every function is differentiable by autograd in all its inputs and both states, runs in any floating dtype on any
device, and serves as the oracle in fp64. None of them is fast. (Positions are taken by one ``unbind``: the gradient of
a slice is a tensor as long as what it was cut from, zero elsewhere, and would cost as much again as the recurrence.)
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def wkv6_reference(
    r_BTHK: Float[Tensor, "B T H K"],
    k_BTHK: Float[Tensor, "B T H K"],
    v_BTHV: Float[Tensor, "B T H V"],
    log_w_BTHK: Float[Tensor, "B T H K"],
    u_HK: Float[Tensor, "H K"],
    initial_BHKV: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """RWKV-6 time mixing: see ``kernels.wkv6``.

    Source: Peng et al., "Eagle and Finch", arXiv:2404.05892, section 4.2.
    """
    state_BHKV = initial_BHKV
    ys = []
    for r_BHK, k_BHK, v_BHV, log_w_BHK in _positions(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK):
        kv_BHKV = k_BHK[..., :, None] * v_BHV[..., None, :]
        ys.append(torch.einsum("bhk,bhkv->bhv", r_BHK, state_BHKV + u_HK[:, :, None] * kv_BHKV))
        state_BHKV = log_w_BHK[..., None].exp() * state_BHKV + kv_BHKV
    return torch.stack(ys, dim=1), state_BHKV


def ssd_reference(
    x_BTHP: Float[Tensor, "B T H P"],
    dt_BTH: Float[Tensor, "B T H"],
    A_H: Float[Tensor, " H"],
    B_BTGN: Float[Tensor, "B T G N"],
    C_BTGN: Float[Tensor, "B T G N"],
    initial_BHPN: Float[Tensor, "B H P N"],
) -> tuple[Float[Tensor, "B T H P"], Float[Tensor, "B H P N"]]:
    """Mamba-2's recurrence: see ``kernels.ssd``.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 3.
    """
    heads_per_group = x_BTHP.shape[2] // B_BTGN.shape[2]
    B_BTHN = B_BTGN.repeat_interleave(heads_per_group, dim=2)
    C_BTHN = C_BTGN.repeat_interleave(heads_per_group, dim=2)
    state_BHPN = initial_BHPN
    ys = []
    for x_BHP, dt_BH, B_BHN, C_BHN in _positions(x_BTHP, dt_BTH, B_BTHN, C_BTHN):
        decay_BH = (dt_BH * A_H).exp()
        write_BHP = dt_BH[..., None] * x_BHP
        state_BHPN = decay_BH[..., None, None] * state_BHPN + write_BHP[..., :, None] * B_BHN[..., None, :]
        ys.append(torch.einsum("bhpn,bhn->bhp", state_BHPN, C_BHN))
    return torch.stack(ys, dim=1), state_BHPN


def causal_conv1d_reference(
    x_BTC: Float[Tensor, "B T C"],
    weight_Cw: Float[Tensor, "C w"],
    bias_C: Float[Tensor, " C"],
    initial_BCw: Float[Tensor, "B C memory"],
    activation: str | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C memory"]]:
    """Depthwise causal convolution over the last w inputs: see ``kernels.causal_conv1d``."""
    memory_BCw = initial_BCw
    ys = []
    for (x_BC,) in _positions(x_BTC):
        window_BCw = torch.cat([memory_BCw, x_BC[..., None]], dim=-1)
        ys.append((window_BCw * weight_Cw).sum(-1) + bias_C)
        memory_BCw = window_BCw[..., 1:]
    y_BTC = torch.stack(ys, dim=1)
    return (F.silu(y_BTC) if activation == "silu" else y_BTC), memory_BCw


def selective_scan_reference(
    u_BTC: Float[Tensor, "B T C"],
    delta_BTC: Float[Tensor, "B T C"],
    A_CN: Float[Tensor, "C N"],
    B_BTN: Float[Tensor, "B T N"],
    C_BTN: Float[Tensor, "B T N"],
    D_C: Float[Tensor, " C"],
    initial_BCN: Float[Tensor, "B C N"],
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C N"]]:
    """Mamba-1's recurrence: see ``kernels.selective_scan``.

    Source: Gu & Dao, "Mamba", arXiv:2312.00752, section 3.2, algorithm 2.
    """
    state_BCN = initial_BCN
    ys = []
    for u_BC, delta_BC, B_BN, C_BN in _positions(u_BTC, delta_BTC, B_BTN, C_BTN):
        decay_BCN = (delta_BC[..., None] * A_CN).exp()
        write_BC = delta_BC * u_BC
        state_BCN = decay_BCN * state_BCN + write_BC[..., None] * B_BN[:, None, :]
        ys.append((state_BCN * C_BN[:, None, :]).sum(-1) + D_C * u_BC)
    return torch.stack(ys, dim=1), state_BCN


def cross_entropy_reference(logits_NV: Float[Tensor, "N V"], targets_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of ``-ln softmax(logits)[target]``: see ``kernels.cross_entropy``."""
    log_p_NV = logits_NV - logits_NV.logsumexp(dim=1, keepdim=True)
    return -log_p_NV.gather(1, targets_N[:, None]).mean()


def rms_norm_reference(
    x_BTD: Float[Tensor, "B T D"], weight_D: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "B T D"]:
    """``x / sqrt(mean(x^2) + eps) * weight``: see ``kernels.rms_norm``.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, section 4.
    """
    return x_BTD / torch.sqrt(x_BTD.square().mean(-1, keepdim=True) + eps) * weight_D


def gated_rms_norm_reference(
    x_BTD: Float[Tensor, "B T D"],
    z_BTD: Float[Tensor, "B T D"],
    weight_D: Float[Tensor, " D"],
    eps: float,
    num_groups: int,
) -> Float[Tensor, "B T D"]:
    """RMSNorm of ``x silu(z)``, group by group: see ``kernels.gated_rms_norm``."""
    groups = (x_BTD * z_BTD * torch.sigmoid(z_BTD)).chunk(num_groups, dim=-1)
    one = torch.ones_like(weight_D[: groups[0].shape[-1]])
    return torch.cat([rms_norm_reference(group, one, eps) for group in groups], dim=-1) * weight_D


def _positions(*sequences: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """What each of ``[B, T, ...]`` holds at each position, in their order."""
    return zip(*(sequence.unbind(1) for sequence in sequences), strict=True)
