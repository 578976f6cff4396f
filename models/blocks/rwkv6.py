"""RWKV-6 ("Finch", x060): time-mix and channel-mix. Peng et al., arXiv:2404.05892, sections 4 and C."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from models.blocks.innovation import wkv6_innovation
from models.blocks.lengths import padding_mask
from models.blocks.mixer import Mixer, MixerOutput, MixerState, StateSpec
from models.blocks.parameters import matmul_only, state_dtype, undecayed
from models.blocks.token_shift import last_input, shift_difference
from models.config import Rwkv6Config

# The reference uses 1e-5 * head_size_divisor^2 with a divisor of 8, whatever the head size.
GROUP_NORM_EPS = 1e-5 * 8**2
MIXED = "wkvrg"  # order of the five mixed inputs, as the reference has it


class Rwkv6TimeMix(Mixer):
    r"""RWKV-6 time-mix.

        s_t = u_{t-1} - u_t
        m_* = tanh((u + s maa_x) maa_w1) maa_w2_*                     * in w, k, v, r, g
        x_* = u + s (maa_* + m_*)
        r, k, v = W_r x_r, W_k x_k, W_v x_v;  g = silu(W_g x_g)
        log w = -exp(time_decay + tanh(x_w decay_w1) decay_w2)
        y_t = r_t (S_{t-1} + diag(bonus) k_t^T v_t),  S_t = diag(w_t) S_{t-1} + k_t^T v_t
        out = W_o (GroupNorm_H(y) g)

    State kinds: ``wkv`` ``[B,H,K,V]`` fp32, ``shift_att`` ``[B,D]`` (the last input).
    Source: arXiv:2404.05892 section 4.1; initialisation as in the authors' training code: W_o is zero, so a
    fresh time-mix writes exactly nothing and its other weights get no gradient before the first update.
    """

    def __init__(self, d_model: int, config: Rwkv6Config, layer_index: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = d_model // config.head_size, config.head_size
        depth = layer_index / max(num_layers - 1, 1)  # 0 .. 1; a single layer counts as the first
        height = 1 - layer_index / num_layers  # 1 .. 1/L
        share_D = torch.arange(d_model) / d_model
        along_D = torch.arange(d_model) / max(d_model - 1, 1)

        mix_D, half_mix_D = 1 - share_D**height, 1 - share_D ** (0.5 * height)
        self.maa_x = undecayed(mix_D.clone())
        self.maa = undecayed(torch.stack([mix_D, mix_D, mix_D - 0.3 * depth, half_mix_D, half_mix_D]))
        self.maa_w1 = matmul_only(undecayed(torch.zeros(d_model, len(MIXED) * config.mix_rank)))
        self.maa_w2 = matmul_only(undecayed(torch.empty(len(MIXED), config.mix_rank, d_model).uniform_(-0.01, 0.01)))
        self.time_decay = undecayed(-6 + 5 * along_D ** (0.7 + 1.3 * depth))
        self.decay_w1 = matmul_only(undecayed(torch.zeros(d_model, config.decay_rank)))
        self.decay_w2 = matmul_only(undecayed(torch.empty(config.decay_rank, d_model).uniform_(-0.01, 0.01)))
        zigzag_D = ((torch.arange(d_model) + 1) % 3 - 1) * 0.1
        self.bonus = undecayed((depth * (1 - along_D) + zigzag_D).view(self.num_heads, self.head_size))

        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0), (self.gate, 0.1)):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.output.weight)
        self.norm_weight = undecayed(torch.full((d_model,), ((1 + layer_index) / num_layers) ** 0.7))
        self.norm_bias = undecayed(torch.zeros(d_model))

    def forward(
        self,
        u_BTD: Tensor,
        state: MixerState | None = None,
        observe: bool = False,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> MixerOutput:
        """Mix ``u_BTD``; see the class for the equations and the state."""
        B, T, D = u_BTD.shape
        heads = (B, T, self.num_heads, self.head_size)
        previous_BD = None if state is None else state["shift_att"]
        x_w, x_k, x_v, x_r, x_g = self._mixed_inputs(u_BTD, previous_BD)

        r_BTHK = self.receptance(x_r).view(heads)
        k_BTHK = self.key(x_k).view(heads)
        v_BTHV = self.value(x_v).view(heads)
        g_nD = F.silu(self.gate(x_g))
        # the sum stays out of the matrix product: under autocast that would round the decay to bf16
        log_w_BTHK = -torch.exp(self.time_decay + torch.tanh(x_w @ self.decay_w1) @ self.decay_w2).view(heads)
        if lengths_B is not None:  # padding writes nothing and forgets nothing
            padding_BT11 = padding_mask(lengths_B, T)[..., None, None]
            k_BTHK, log_w_BTHK = k_BTHK.masked_fill(padding_BT11, 0.0), log_w_BTHK.masked_fill(padding_BT11, 0.0)

        initial_BHKV = None if state is None else state["wkv"]
        y_BTHV, final_BHKV = kernels.wkv6(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, self.bonus, initial_BHKV)
        y_nD = F.group_norm(
            y_BTHV.reshape(B * T, D), self.num_heads, self.norm_weight, self.norm_bias, eps=GROUP_NORM_EPS
        )
        out_BTD = self.output(y_nD * g_nD).view(B, T, D)
        final = {"wkv": final_BHKV, "shift_att": last_input(u_BTD, previous_BD, lengths_B)}
        if not observe:
            return MixerOutput(out_BTD, final)
        return MixerOutput(out_BTD, final, log_w_BTHK.exp(), wkv6_innovation(k_BTHK, v_BTHV, log_w_BTHK, initial_BHKV))

    def _mixed_inputs(self, u_BTD: Tensor, previous_BD: Tensor | None) -> tuple[Tensor, ...]:
        """The five inputs, each ``[B*T, D]``: a learned, data-dependent blend of each position and the one before."""
        D = u_BTD.shape[-1]
        s_BTD = shift_difference(u_BTD, previous_BD)
        u_nD, s_nD = u_BTD.reshape(-1, D), s_BTD.view(-1, D)
        x_nD = torch.addcmul(u_nD, s_nD, self.maa_x)
        low_5nR = torch.tanh(x_nD @ self.maa_w1).view(-1, len(MIXED), self.maa_w2.shape[1]).transpose(0, 1)
        data_5nD = torch.bmm(low_5nR, self.maa_w2)
        mix_5nD = (self.maa[:, None] + data_5nD).to(data_5nD.dtype)
        if torch.compiler.is_compiling():
            # one by one: of five in one tensor the compiler writes the gradients to memory, in fp32
            return tuple(torch.addcmul(u_nD, s_nD, mix_nD) for mix_nD in mix_5nD.unbind(0))
        return torch.addcmul(u_nD, s_nD, mix_5nD).unbind(0)

    def state_spec(self, batch_size: int) -> dict[str, StateSpec]:
        """``wkv`` and ``shift_att``."""
        wkv = (batch_size, self.num_heads, self.head_size, self.head_size)
        shift = (batch_size, self.maa_x.numel())
        return {"wkv": StateSpec(wkv, state_dtype(self.bonus)), "shift_att": StateSpec(shift, None)}


class Rwkv6ChannelMix(nn.Module):
    r"""RWKV-6 channel-mix: the feed-forward of the published form, with a token shift of its own.

        s_t = u_{t-1} - u_t
        k = relu(W_k (u + s maa_k))^2,   out = sigmoid(W_r (u + s maa_r)) W_v k

    State kind: ``shift_ffn`` ``[B,D]``. Source: arXiv:2404.05892 section 4.2; W_v and W_r start at zero.
    """

    def __init__(self, d_model: int, d_ff: int, layer_index: int, num_layers: int) -> None:
        super().__init__()
        mix_D = 1 - (torch.arange(d_model) / d_model) ** ((1 - layer_index / num_layers) ** 3)
        self.maa_k = undecayed(mix_D.clone())
        self.maa_r = undecayed(mix_D.clone())
        self.key = nn.Linear(d_model, d_ff, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_ff, d_model, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(
        self, u_BTD: Tensor, previous_BD: Tensor | None = None, lengths_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The output ``[B,T,D]`` and the next ``shift_ffn``."""
        s_BTD = shift_difference(u_BTD, previous_BD)
        k_BTF = torch.relu(self.key(torch.addcmul(u_BTD, s_BTD, self.maa_k))).square()
        r_BTD = torch.sigmoid(self.receptance(torch.addcmul(u_BTD, s_BTD, self.maa_r)))
        return r_BTD * self.value(k_BTF), last_input(u_BTD, previous_BD, lengths_B)
