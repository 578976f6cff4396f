"""Mamba-2 between its projections as one operation, from no state and without giving one back.

What the package calls ``mamba_split_conv1d_scan_combined``, put together from the same kernels: convolution, scan with
the skip D and the softplus of dt inside, gated norm. The gradients of z, x, B, C and dt are written where the gradient
of the projection has them, which leaves nothing to be put together, and rows may be longer than what is projected, so
that they start at multiples of 16 bytes.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.packages import conv1d, ssd
from kernels.packages.mamba_modules import combined, gated_norm
from kernels.packages.opaque import define
from kernels.registration import contiguous_like, register

_INPUTS = (
    "Tensor zxBCdt, Tensor conv_weight, Tensor conv_bias, Tensor dt_bias, Tensor A, Tensor D, Tensor norm_weight, "
    "float eps, int head_dim, int num_groups"
)


@cache
def load() -> None:
    """Import the kernels and register the operation. Raises ``BackendError``."""
    conv1d.load()
    ssd.load()
    define(f"mamba2_mamba_ssm({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _forward)
    define(
        f"mamba2_mamba_ssm_backward({_INPUTS}, Tensor xBC, Tensor scan, Tensor rstd, Tensor dy) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward,
    )
    register("mamba2_mamba_ssm", _fake, _gradients, _save, _fake_gradients)


def mamba2_mamba_ssm(
    zxBCdt_BTJ: Tensor,
    conv_weight_Cw: Tensor,
    conv_bias_C: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    norm_weight_I: Tensor,
    eps: float,
    head_dim: int,
    num_groups: int,
) -> Tensor:
    """``y [B,T,I]``: see ``kernels.mamba2``. The projection is fp32, bf16 or fp16, the rest fp32."""
    y_BTI: Tensor = torch.ops.groundthink.mamba2_mamba_ssm(
        zxBCdt_BTJ, conv_weight_Cw, conv_bias_C, dt_bias_H, A_H, D_H, norm_weight_I, eps, head_dim, num_groups
    )[0]
    return y_BTI


class _Layout:
    """Where z, x, B, C and dt lie in a row of the projection."""

    def __init__(self, conv_weight: Tensor, D: Tensor, head_dim: int, num_groups: int) -> None:
        self.heads, self.head_dim, self.groups = D.shape[0], head_dim, num_groups
        self.inner, self.channels = self.heads * head_dim, conv_weight.shape[0]
        self.used = self.inner + self.channels + self.heads

    def parts(self, zxBCdt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of z ``[B,T,I]``, xBC ``[B,T,C]`` and dt ``[B,T,H]``."""
        after_z = self.inner + self.channels
        return zxBCdt[..., : self.inner], zxBCdt[..., self.inner : after_z], zxBCdt[..., after_z : self.used]

    def scanned(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of x ``[B,T,H,P]``, B and C ``[B,T,G,N]``."""
        states = (self.channels - self.inner) // 2
        x, B, C = torch.split(xBC, [self.inner, states, states], dim=-1)
        grouped = (*xBC.shape[:2], self.groups, -1)
        return x.view(*xBC.shape[:2], self.heads, self.head_dim), B.view(grouped), C.view(grouped)


def _forward(
    zxBCdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    head_dim: int,
    num_groups: int,
) -> tuple[Tensor, ...]:
    layout = _Layout(conv_weight, D, head_dim, num_groups)
    z, inputs, dt = layout.parts(zxBCdt)
    (xBC,) = conv1d.run_forward(inputs, conv_weight, conv_bias, None, True)
    x, B, C = layout.scanned(xBC)
    scan, *_ = combined()._mamba_chunk_scan_combined_fwd(
        x, dt, A, B, C, ssd.chunk_length(x.shape[1], x.dtype), D=D, dt_bias=dt_bias, dt_softplus=True
    )
    y, _, rstd = gated_norm()._layer_norm_fwd(
        scan.view(-1, layout.inner),
        norm_weight,
        None,
        eps,
        _as_rows(z),
        group_size=layout.inner // num_groups,
        norm_before_gate=False,
        is_rms_norm=True,
    )
    return y.view(z.shape), xBC, scan, rstd


def _backward(
    zxBCdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    head_dim: int,
    num_groups: int,
    xBC: Tensor,
    scan: Tensor,
    rstd: Tensor,
    dy: Tensor,
) -> tuple[Tensor, ...]:
    layout = _Layout(conv_weight, D, head_dim, num_groups)
    z, inputs, dt = layout.parts(zxBCdt)
    dzxBCdt = contiguous_like(zxBCdt)
    dzxBCdt[..., layout.used :].zero_()
    dz, dinputs, ddt = layout.parts(dzxBCdt)
    dscan, dnorm_weight, _, _ = gated_norm()._layer_norm_bwd(
        _as_rows(dy.contiguous()),
        scan.view(-1, layout.inner),
        norm_weight,
        None,
        eps,
        None,
        rstd,
        _as_rows(z),
        group_size=layout.inner // num_groups,
        norm_before_gate=False,
        is_rms_norm=True,
        dz=_as_rows(dz),
    )
    x, B, C = layout.scanned(xBC)
    dxBC = torch.empty_like(xBC)
    dx, dB, dC = layout.scanned(dxBC)
    _, _, dA, _, _, dD, _, ddt_bias, _ = combined()._mamba_chunk_scan_combined_bwd(
        dscan.view(scan.shape),
        x,
        dt,
        A,
        B,
        C,
        scan,
        ssd.chunk_length(x.shape[1], x.dtype),
        D=D,
        dt_bias=dt_bias,
        dt_softplus=True,
        dx=dx,
        ddt=ddt,
        dB=dB,
        dC=dC,
    )
    _, dconv_weight, dconv_bias = conv1d.run_backward(
        inputs, conv_weight, conv_bias, None, True, dxBC, None, dx_BTC=dinputs
    )
    return dzxBCdt, dconv_weight, dconv_bias, ddt_bias, dA, dD, dnorm_weight


def _as_rows(tensor: Tensor) -> Tensor:
    """``[B, T, I]`` as rows ``[B T, I]``, a view where rows are evenly spaced."""
    return tensor.flatten(0, 1)


def _fake(
    zxBCdt: Tensor, conv_weight: Tensor, conv_bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    _, _, head_dim, num_groups = others
    B, T, _ = zxBCdt.shape
    layout = _Layout(conv_weight, D, head_dim, num_groups)
    return (
        zxBCdt.new_empty(B, T, layout.inner),
        zxBCdt.new_empty(B, T, layout.channels),
        zxBCdt.new_empty(B, T, layout.heads, head_dim),
        zxBCdt.new_empty(num_groups * B * T, dtype=torch.float32),
    )


def _fake_gradients(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(contiguous_like(tensor) for tensor in inputs[:7])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.head_dim, ctx.num_groups = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    tensors, kept = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
    sizes = (ctx.eps, ctx.head_dim, ctx.num_groups)
    return *torch.ops.groundthink.mamba2_mamba_ssm_backward(*tensors, *sizes, *kept, dy), None, None, None
