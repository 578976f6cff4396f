"""Causal multi-head attention with a key-value state. Vaswani et al., arXiv:1706.03762, section 3.2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.mixer import Mixer, MixerOutput, MixerState, StateSpec
from models.blocks.parameters import start_bias_at_zero


class CausalAttention(Mixer):
    r"""softmax(q k^T / sqrt(P) + causal mask) v over the whole past.

    State kinds: ``k``, ``v`` ``[B,H,T,P]``, all keys and values so far. Positions are the stack's business.
    """

    def __init__(self, d_model: int, num_heads: int, num_layers: int, bias: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.output = nn.Linear(d_model, d_model, bias=bias)
        nn.init.normal_(self.qkv.weight, std=0.02)
        nn.init.normal_(self.output.weight, std=0.02 / (2 * num_layers) ** 0.5)  # two residuals a layer, as in GPT-2
        for linear in (self.qkv, self.output):
            start_bias_at_zero(linear)

    def forward(
        self,
        u_BTD: Tensor,
        state: MixerState | None = None,
        observe: bool = False,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> MixerOutput:
        """Attend. There is nothing to observe: a key-value state neither decays nor is rewritten.

        ``lengths_B`` needs no mask: padding comes after all real positions, and those look back only.
        """
        B, T, D = u_BTD.shape
        qkv_3BHTP = self.qkv(u_BTD).view(B, T, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q_BHTP, k_BHTP, v_BHTP = qkv_3BHTP.unbind(0)
        past = 0
        if state is not None:
            past = state["k"].shape[2]
            k_BHTP = torch.cat((state["k"].to(k_BHTP.dtype), k_BHTP), dim=2)
            v_BHTP = torch.cat((state["v"].to(v_BHTP.dtype), v_BHTP), dim=2)
        mask_TS = None
        if past and T > 1:
            mask_TS = torch.ones(T, past + T, dtype=torch.bool, device=u_BTD.device).tril(past)
        y_BHTP = F.scaled_dot_product_attention(
            q_BHTP, k_BHTP, v_BHTP, attn_mask=mask_TS, is_causal=past == 0 and T > 1
        )
        return MixerOutput(self.output(y_BHTP.transpose(1, 2).reshape(B, T, D)), {"k": k_BHTP, "v": v_BHTP})

    def state_spec(self, batch_size: int) -> dict[str, StateSpec]:
        """``k`` and ``v``, of any length."""
        spec = StateSpec((batch_size, self.num_heads, None, self.head_dim), None)
        return {"k": spec, "v": spec}
