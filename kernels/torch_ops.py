"""What PyTorch has itself: the loss and the norms on devices without a backend of ours."""

import torch
from torch import Tensor
from torch.nn import functional as F

# F.cross_entropy leaves out rows with some target; no class has this number, so it leaves out none
_NO_TARGET = torch.iinfo(torch.int64).min


def cross_entropy_torch(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats: see ``kernels.cross_entropy``."""
    return F.cross_entropy(logits_NV, targets_N, ignore_index=_NO_TARGET)


def rms_norm_torch(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm: see ``kernels.rms_norm``."""
    return F.rms_norm(x_BTD, weight_D.shape, weight_D, eps)


def gated_rms_norm_torch(x_BTD: Tensor, z_BTD: Tensor, weight_D: Tensor, eps: float, num_groups: int) -> Tensor:
    """RMSNorm of ``x silu(z)``: see ``kernels.gated_rms_norm``."""
    gated_BTD = x_BTD * F.silu(z_BTD)
    if num_groups == 1:
        return F.rms_norm(gated_BTD, weight_D.shape, weight_D, eps)
    gated_BTGS = torch.unflatten(gated_BTD, -1, (num_groups, -1))
    return F.rms_norm(gated_BTGS, gated_BTGS.shape[-1:], None, eps).flatten(-2) * weight_D
