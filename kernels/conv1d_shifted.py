"""Causal depthwise convolution as w shifted multiply-adds: no copy per position, any device."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def causal_conv1d_shifted(
    x_BTC: Float[Tensor, "B T C"],
    weight_Cw: Float[Tensor, "C w"],
    bias_C: Float[Tensor, " C"],
    initial_BCw: Float[Tensor, "B C memory"],
    activation: str | None,
) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B C memory"]]:
    """Depthwise causal convolution: see ``kernels.causal_conv1d``. All tensors share one dtype, fp32 or fp64."""
    T, width = x_BTC.shape[1], weight_Cw.shape[1]
    padded_BTC = torch.cat([initial_BCw.transpose(1, 2), x_BTC], dim=1)
    y_BTC = bias_C + padded_BTC[:, :T] * weight_Cw[:, 0]
    for tap in range(1, width):
        y_BTC = torch.addcmul(y_BTC, padded_BTC[:, tap : tap + T], weight_Cw[:, tap])
    final_BCw = padded_BTC[:, T:].transpose(1, 2).contiguous()
    return (F.silu(y_BTC) if activation == "silu" else y_BTC), final_BCw
