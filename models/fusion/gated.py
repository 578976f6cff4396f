"""Gated fusions: a mixture chosen at every position, from what the branches say."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.blocks.parameters import matmul_only, undecayed
from models.fusion.base import Fused, Fusion


class GatedFusion(Fusion):
    r"""A gate in (0, 1), the share of RWKV-6.

        g_t = sigmoid(W [rwkv_t; mamba_t] + b),   out_t = g_t * rwkv_t + (1 - g_t) * mamba_t

    ``num_gates`` is 1 (one gate a position) or D (one a position and channel). W starts at zero and b at
    logit(gate_init), so that a fresh model mixes every position with exactly that share. W is held as its two
    blocks, which spares the concatenation.
    """

    def __init__(self, d_model: int, num_gates: int, gate_init: float) -> None:
        super().__init__()
        assert num_gates in (1, d_model), "a gate is one a position or one a channel"
        self.rwkv_weight = nn.Parameter(torch.zeros(num_gates, d_model))
        self.mamba_weight = nn.Parameter(torch.zeros(num_gates, d_model))
        self.bias = undecayed(torch.full((num_gates,), math.log(gate_init / (1 - gate_init))))
        if num_gates > 1:
            for parameter in (self.rwkv_weight, self.mamba_weight, self.bias):
                matmul_only(parameter)

    def forward(self, rwkv_BTD: Float[Tensor, "B T D"], mamba_BTD: Float[Tensor, "B T D"]) -> Fused:
        """Mix the branches."""
        if torch.compiler.is_compiling() and len(self.bias) == 1:
            # one column is hardly a matrix product, and as a sum the compiler fuses it with what is around it
            products_BTD = rwkv_BTD * self.rwkv_weight + mamba_BTD * self.mamba_weight
            logits_BTG = products_BTD.sum(-1, keepdim=True) + self.bias
        else:
            logits_BTG = F.linear(rwkv_BTD, self.rwkv_weight, self.bias) + F.linear(mamba_BTD, self.mamba_weight)
        gate_BTG = torch.sigmoid(logits_BTG)
        # not a lerp: these two writes must add up to the fused output bit by bit
        return Fused(gate_BTG * rwkv_BTD, (1 - gate_BTG) * mamba_BTD, gate_BTG, logits_BTG)
