"""What every fusion offers: the writes of the two branches, which add up to the fused output exactly."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Fused:
    """Writes of the branches to the residual stream, ``[B,T,D]`` each; the fused output is their sum.

    gate and gate_logits are the share of RWKV-6 and its pre-activation, ``[B,T,1]`` or ``[B,T,D]``; None where
    the fusion has no gate.
    """

    rwkv: Tensor
    mamba: Tensor
    gate: Tensor | None = None
    gate_logits: Tensor | None = None


class Fusion(nn.Module, ABC):
    """Turns the outputs of an RWKV-6 and a Mamba-2 mixer into their writes."""

    @abstractmethod
    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Fuse the outputs of the two mixers."""
