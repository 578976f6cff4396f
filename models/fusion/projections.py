"""Fusions that project: linear maps of the branch outputs, without a gate."""

from jaxtyping import Float
from torch import Tensor, nn

from models.fusion.base import Fused, Fusion

RESIDUAL_SCALE = 0.1  # size of a projected write against its input at the start, whatever the width


class ResidualProjection(Fusion):
    """``rwkv + W mamba``: RWKV-6 as it is, Mamba-2 as a correction that starts small."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mamba = nn.Linear(d_model, d_model, bias=False)
        nn.init.normal_(self.mamba.weight, std=RESIDUAL_SCALE * d_model**-0.5)

    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Project Mamba-2 only."""
        return Fused(rwkv_BTD, self.mamba(mamba_BTD))


class ConcatProjection(Fusion):
    """``W [rwkv; mamba]``, held as the two blocks of W, so that each branch's share of the sum is explicit."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.rwkv = nn.Linear(d_model, d_model, bias=False)
        self.mamba = nn.Linear(d_model, d_model, bias=False)
        for linear in (self.rwkv, self.mamba):
            nn.init.normal_(linear.weight, std=(2 * d_model) ** -0.5)  # W keeps the scale of its 2 D inputs

    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Project both branches."""
        return Fused(self.rwkv(rwkv_BTD), self.mamba(mamba_BTD))
