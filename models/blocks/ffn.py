"""The position-wise feed-forward layer. Hendrycks & Gimpel, arXiv:1606.08415 (GELU)."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.blocks.parameters import start_bias_at_zero


class FeedForward(nn.Module):
    """``W_down gelu(W_up x)``; ``gelu`` chooses the exact GELU or its tanh form."""

    def __init__(
        self, d_model: int, d_ff: int, num_layers: int, bias: bool, gelu: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.gelu = gelu
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        nn.init.normal_(self.up.weight, std=0.02)
        nn.init.normal_(self.down.weight, std=0.02 / (2 * num_layers) ** 0.5)  # two residuals a layer, as in GPT-2
        for linear in (self.up, self.down):
            start_bias_at_zero(linear)

    def forward(self, u_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """``[B,T,D]`` to ``[B,T,D]``."""
        hidden: Tensor = self.down(F.gelu(self.up(u_BTD), approximate=self.gelu))
        return hidden
