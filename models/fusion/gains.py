"""Fusions with learned constants: the same mixture at every position."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.blocks.parameters import undecayed
from models.fusion.base import Fused, Fusion


class LearnedGains(Fusion):
    """``a * rwkv + b * mamba`` with a gain per branch and channel, free of each other; both start at 1/2."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.rwkv_gain = undecayed(torch.full((d_model,), 0.5))
        self.mamba_gain = undecayed(torch.full((d_model,), 0.5))

    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Scale both branches."""
        return Fused(rwkv_BTD * self.rwkv_gain, mamba_BTD * self.mamba_gain)


class LearnedScalar(Fusion):
    """``a rwkv + (1 - a) mamba`` with one learned share ``a = sigmoid(logit)`` a layer, 1/2 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = undecayed(torch.zeros(()))

    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Blend the branches."""
        share = torch.sigmoid(self.logit)
        return Fused(rwkv_BTD * share, mamba_BTD * (1 - share))
