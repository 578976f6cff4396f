"""Mamba-2 mixer. Dao & Gu, arXiv:2405.21060, section 7."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from models.blocks.innovation import ssd_innovation
from models.blocks.lengths import last_inputs, padding_mask
from models.blocks.mixer import Mixer, MixerOutput, MixerState, StateSpec
from models.blocks.parameters import state_dtype, undecayed
from models.config import Mamba2Config

NORM_EPS = 1e-5
GPU_COLUMNS = 8
A_RANGE = (1.0, 16.0)
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


class PaddedLinear(nn.Linear):
    """A projection without bias that pads its output with zeros to a multiple of ``GPU_COLUMNS`` on a GPU.

    So every row starts at a multiple of 16 bytes, in 16 bits too: else the product runs on a slower kernel, and the
    convolution after it must copy what it reads. Elsewhere nothing is padded.
    """

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The product, with the columns that were asked for first."""
        missing = -self.out_features % GPU_COLUMNS
        if not (missing and x_BTD.is_cuda):
            return super().forward(x_BTD)
        return F.linear(x_BTD, F.pad(self.weight, (0, 0, 0, missing)))


class Mamba2Mixer(Mixer):
    r"""Mamba-2 mixer, state-space duality form.

        z, xBC, dt = W_in u
        x, B, C = silu(conv(xBC));  dt = softplus(dt + dt_bias);  A = -exp(A_log)
        S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,   y_t = S_t C_t + D x_t
        out = W_out RMSNorm(y silu(z))

    State kinds: ``ssm`` ``[B,H,P,N]`` fp32, ``conv`` ``[B,C,w-1]`` (the last inputs of the convolution).
    Source: arXiv:2405.21060 section 7.1; order of the projection and initialisation as in the authors' code.
    ``num_residuals`` is the number of residual additions of the whole network: W_out is divided by its root.
    """

    def __init__(self, d_model: int, config: Mamba2Config, num_residuals: int) -> None:
        super().__init__()
        d_inner = config.expand * d_model
        self.num_heads, self.head_dim = d_inner // config.head_dim, config.head_dim
        self.num_groups, self.d_state = config.num_groups, config.d_state
        group_size = config.num_groups * config.d_state
        self.widths = [d_inner, d_inner + 2 * group_size, self.num_heads]  # z, xBC, dt
        self.conv_widths = [d_inner, group_size, group_size]  # x, B, C

        self.in_proj = PaddedLinear(d_model, sum(self.widths), bias=False)
        bound = config.conv_width**-0.5  # the default of a depthwise convolution
        self.conv_weight = nn.Parameter(torch.empty(self.widths[1], config.conv_width).uniform_(-bound, bound))
        self.conv_bias = undecayed(torch.empty(self.widths[1]).uniform_(-bound, bound))
        low, high = (math.log(dt) for dt in DT_RANGE)
        dt_H = torch.exp(torch.empty(self.num_heads).uniform_(low, high)).clamp(min=DT_FLOOR)
        self.dt_bias = undecayed(dt_H + torch.log(-torch.expm1(-dt_H)))  # the inverse of softplus
        self.A_log = undecayed(torch.empty(self.num_heads).uniform_(*A_RANGE).log())
        self.D = undecayed(torch.ones(self.num_heads))
        self.norm_weight = undecayed(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(num_residuals))

    def forward(
        self,
        u_BTD: Tensor,
        state: MixerState | None = None,
        observe: bool = False,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> MixerOutput:
        """Mix ``u_BTD``; see the class for the equations and the state."""
        B, T, _ = u_BTD.shape
        zxBCdt_BTJ = self.in_proj(u_BTD)
        A_H = -torch.exp(self.A_log)
        is_plain = state is None and lengths_B is None and not (observe or keep_state)
        if is_plain and kernels.fuses_mamba2(zxBCdt_BTJ, len(self.norm_weight), len(self.conv_bias)):
            return MixerOutput(self.out_proj(self._fused(zxBCdt_BTJ, A_H)), {})

        z_BTI, input_BTC, dt_BTH = torch.split(zxBCdt_BTJ[..., : sum(self.widths)], self.widths, dim=-1)
        conv_BCw = None if state is None else state["conv"]
        xBC_BTC, final_BCw = kernels.causal_conv1d(input_BTC, self.conv_weight, self.conv_bias, conv_BCw)
        x_BTI, B_BTI, C_BTI = torch.split(xBC_BTC, self.conv_widths, dim=-1)
        x_BTHP = x_BTI.reshape(B, T, self.num_heads, self.head_dim)
        B_BTGN = B_BTI.reshape(B, T, self.num_groups, self.d_state)
        C_BTGN = C_BTI.reshape(B, T, self.num_groups, self.d_state)
        dt_BTH = F.softplus(dt_BTH + self.dt_bias)
        if lengths_B is not None:  # padding writes nothing and forgets nothing
            dt_BTH = dt_BTH.masked_fill(padding_mask(lengths_B, T)[..., None], 0.0)
            before_BwC = None if conv_BCw is None else conv_BCw.transpose(1, 2)
            tail_BwC = last_inputs(input_BTC.to(final_BCw.dtype), lengths_B, final_BCw.shape[2], before_BwC)
            final_BCw = tail_BwC.transpose(1, 2)

        initial_BHPN = None if state is None else state["ssm"]
        y_BTHP, final_BHPN = kernels.ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, initial_BHPN)
        y_BTI = torch.addcmul(y_BTHP, x_BTHP, self.D[:, None]).reshape(B, T, -1)
        out_BTD = self.out_proj(kernels.gated_rms_norm(y_BTI, z_BTI, self.norm_weight, NORM_EPS, self.num_groups))
        final = {"ssm": final_BHPN, "conv": final_BCw}
        if not observe:
            return MixerOutput(out_BTD, final)
        innovation_BTH = ssd_innovation(x_BTHP, dt_BTH, A_H, B_BTGN, initial_BHPN)
        return MixerOutput(out_BTD, final, torch.exp(dt_BTH * A_H), innovation_BTH)

    def _fused(self, zxBCdt_BTJ: Tensor, A_H: Tensor) -> Tensor:
        """All between the projections at once."""
        return kernels.mamba2(
            zxBCdt_BTJ,
            self.conv_weight,
            self.conv_bias,
            self.dt_bias,
            A_H,
            self.D,
            self.norm_weight,
            NORM_EPS,
            self.num_groups,
        )

    def state_spec(self, batch_size: int) -> dict[str, StateSpec]:
        """``ssm`` and ``conv``."""
        ssm = (batch_size, self.num_heads, self.head_dim, self.d_state)
        channels, width = self.conv_weight.shape
        return {
            "ssm": StateSpec(ssm, state_dtype(self.A_log)),
            "conv": StateSpec((batch_size, channels, width - 1), None),
        }
