"""RMSNorm. Zhang & Sennrich, arXiv:1910.07467."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

import kernels
from models.blocks.parameters import undecayed


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension; the weight starts at 1 and does not decay."""

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = undecayed(torch.ones(d_model))

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Normalise ``x_BTD``."""
        return kernels.rms_norm(x_BTD, self.weight, self.eps)
