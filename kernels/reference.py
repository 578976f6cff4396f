"""The definition of correct: each operation written as its equations are, recurrences as a loop over positions.

Every function is differentiable by autograd in all its inputs and both states, runs in any floating dtype on any
device, and serves as the oracle in fp64. None of them is fast.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def wkv6_reference(
    r_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_w_BTHK: Tensor, u_HK: Tensor, initial_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-6 time mixing: see ``kernels.wkv6``.

    Source: Peng et al., "Eagle and Finch", arXiv:2404.05892, section 4.2.
    """
    state_BHKV = initial_BHKV
    ys = []
    for t in range(r_BTHK.shape[1]):
        kv_BHKV = k_BTHK[:, t, :, :, None] * v_BTHV[:, t, :, None, :]
        ys.append(torch.einsum("bhk,bhkv->bhv", r_BTHK[:, t], state_BHKV + u_HK[:, :, None] * kv_BHKV))
        state_BHKV = log_w_BTHK[:, t, :, :, None].exp() * state_BHKV + kv_BHKV
    return torch.stack(ys, dim=1), state_BHKV


def ssd_reference(
    x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, initial_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence: see ``kernels.ssd``.

    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 3.
    """
    heads_per_group = x_BTHP.shape[2] // B_BTGN.shape[2]
    B_BTHN = B_BTGN.repeat_interleave(heads_per_group, dim=2)
    C_BTHN = C_BTGN.repeat_interleave(heads_per_group, dim=2)
    state_BHPN = initial_BHPN
    ys = []
    for t in range(x_BTHP.shape[1]):
        decay_BH = (dt_BTH[:, t] * A_H).exp()
        write_BHP = dt_BTH[:, t, :, None] * x_BTHP[:, t]
        state_BHPN = decay_BH[..., None, None] * state_BHPN + write_BHP[..., :, None] * B_BTHN[:, t, :, None, :]
        ys.append(torch.einsum("bhpn,bhn->bhp", state_BHPN, C_BTHN[:, t]))
    return torch.stack(ys, dim=1), state_BHPN


def causal_conv1d_reference(
    x_BTC: Tensor, weight_Cw: Tensor, bias_C: Tensor, initial_BCw: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution over the last w inputs: see ``kernels.causal_conv1d``."""
    memory_BCw = initial_BCw
    ys = []
    for t in range(x_BTC.shape[1]):
        window_BCw = torch.cat([memory_BCw, x_BTC[:, t, :, None]], dim=-1)
        ys.append((window_BCw * weight_Cw).sum(-1) + bias_C)
        memory_BCw = window_BCw[..., 1:]
    y_BTC = torch.stack(ys, dim=1)
    return (F.silu(y_BTC) if activation == "silu" else y_BTC), memory_BCw


def selective_scan_reference(
    u_BTC: Tensor, delta_BTC: Tensor, A_CN: Tensor, B_BTN: Tensor, C_BTN: Tensor, D_C: Tensor, initial_BCN: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-1's recurrence: see ``kernels.selective_scan``.

    Source: Gu & Dao, "Mamba", arXiv:2312.00752, section 3.2, algorithm 2.
    """
    state_BCN = initial_BCN
    ys = []
    for t in range(u_BTC.shape[1]):
        decay_BCN = (delta_BTC[:, t, :, None] * A_CN).exp()
        write_BC = delta_BTC[:, t] * u_BTC[:, t]
        state_BCN = decay_BCN * state_BCN + write_BC[:, :, None] * B_BTN[:, t, None, :]
        ys.append((state_BCN * C_BTN[:, t, None, :]).sum(-1) + D_C * u_BTC[:, t])
    return torch.stack(ys, dim=1), state_BCN


def cross_entropy_reference(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of ``-ln softmax(logits)[target]``: see ``kernels.cross_entropy``."""
    log_p_NV = logits_NV - logits_NV.logsumexp(dim=1, keepdim=True)
    return -log_p_NV.gather(1, targets_N[:, None]).mean()


def rms_norm_reference(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight``: see ``kernels.rms_norm``.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467, section 4.
    """
    return x_BTD / torch.sqrt(x_BTD.square().mean(-1, keepdim=True) + eps) * weight_D


def gated_rms_norm_reference(x_BTD: Tensor, z_BTD: Tensor, weight_D: Tensor, eps: float, num_groups: int) -> Tensor:
    """RMSNorm of ``x silu(z)``, group by group: see ``kernels.gated_rms_norm``."""
    groups = (x_BTD * z_BTD * torch.sigmoid(z_BTD)).chunk(num_groups, dim=-1)
    one = torch.ones_like(weight_D[: groups[0].shape[-1]])
    return torch.cat([rms_norm_reference(group, one, eps) for group in groups], dim=-1) * weight_D
