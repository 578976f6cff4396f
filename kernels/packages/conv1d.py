"""The causal convolution on causal-conv1d: the kernels behind ``causal_conv1d_fn``, with both states.

They are called where the package's own autograd function calls them, so that memory and layout are ours. Layout: the
kernels read ``x[b, c, t]`` with adjacent channels ("channel-last"), 8 of them at a time.
"""

import importlib
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.packages.opaque import define
from kernels.registration import contiguous_like, register
from kernels.shapes import KernelInputError

MODULE = "causal_conv1d_cuda"

WIDTHS = (2, 3, 4)
# Channels in a group, and elements that the distance of two positions is a multiple of
_GROUP = 8
# Bytes that a group's address is a multiple of
_ALIGNMENT = 16
# Read at every call: sum the gradients of weight and bias in a fixed order, not by atomic additions
_DETERMINISTIC = "CAUSAL_CONV1D_DETERMINISTIC"


@cache
def load() -> None:
    """Import the kernels and register the operation. Sets ``CAUSAL_CONV1D_DETERMINISTIC=1`` unless it is set."""
    _kernels()
    inputs = "Tensor x, Tensor weight, Tensor bias, Tensor initial, bool silu"
    define(f"causal_conv1d_causal_conv1d({inputs}) -> (Tensor, Tensor)", _forward)
    define(
        f"causal_conv1d_causal_conv1d_backward({inputs}, Tensor? dy, Tensor? dfinal) -> "
        "(Tensor, Tensor, Tensor, Tensor)",
        _backward,
    )
    register("causal_conv1d_causal_conv1d", _fake, _gradients, _save, _fake_gradients)


@cache
def _kernels() -> Any:
    os.environ.setdefault(_DETERMINISTIC, "1")
    return importlib.import_module(MODULE)


def causal_conv1d_causal_conv1d(
    x_BTC: Tensor, weight_Cw: Tensor, bias_C: Tensor, initial_BCw: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution: see ``kernels.causal_conv1d``. Widths 2 to 4.

    x is fp32, bf16 or fp16; weight, bias and states are fp32. With x in 16 bits the states, which are inputs of the
    convolution, are rounded to them, and so are the gradients of x and of the states.

    Raises ``KernelInputError`` for another width and for fp64.
    """
    width = weight_Cw.shape[1]
    if width not in WIDTHS or x_BTC.dtype == torch.float64:
        given = f"a width of {width}" if width not in WIDTHS else "float64"
        raise KernelInputError(
            f"causal_conv1d: causal-conv1d takes widths {WIDTHS[0]} to {WIDTHS[-1]} in float32, bfloat16 and float16, "
            f"not {given}; set GROUNDTHINK_CAUSAL_CONV1D=shifted, which takes any"
        )
    y_BTC, final_BCw = torch.ops.groundthink.causal_conv1d_causal_conv1d(
        x_BTC, weight_Cw, bias_C, initial_BCw, activation == "silu"
    )
    return y_BTC, final_BCw


def channel_last(x_BTC: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as the kernels take it, ``[B, C, T]`` in ``dtype``: as it is where dtype and layout fit, else copied.

    The copy has as many channels as fill the last group, zeros in the new ones.
    """
    B, T, C = x_BTC.shape
    batch, position, channel = x_BTC.stride()
    # the kernels tell the layout by a distance of positions above 1
    laid_out = channel == 1 and position > 1 and position % _GROUP == 0 and batch % _GROUP == 0
    if x_BTC.dtype == dtype and C % _GROUP == 0 and laid_out and x_BTC.data_ptr() % _ALIGNMENT == 0:
        return x_BTC.transpose(1, 2)
    rows = _rows(x_BTC, B, T, C, dtype)
    rows[..., :C].copy_(x_BTC)
    rows[..., C:].zero_()
    return rows.transpose(1, 2)


def _rows(like: Tensor, B: int, T: int, C: int, dtype: torch.dtype) -> Tensor:
    """Memory for ``[B, T, C]`` with the last group of channels filled up."""
    return like.new_empty(B, T, C + -C % _GROUP, dtype=dtype)


def _filled_up(parameter: Tensor) -> Tensor:
    """Zeros for the channels that ``channel_last`` adds."""
    missing = -parameter.shape[0] % _GROUP
    padding = (0, 0) * (parameter.dim() - 1) + (0, missing)
    return F.pad(parameter, padding) if missing else parameter.contiguous()


def run_forward(x_BTC: Tensor, weight: Tensor, bias: Tensor, initial: Tensor | None, silu: bool) -> tuple[Tensor, ...]:
    """``y [B,T,C]`` and, where there is an initial state, the final one ``[B,C,w-1]`` in its dtype."""
    (B, T, C), dtype = x_BTC.shape, x_BTC.dtype
    x_BCT = channel_last(x_BTC, dtype)
    y_BTC = _rows(x_BTC, B, T, C, dtype)
    first = last = None
    if initial is not None:
        first = channel_last(initial.transpose(1, 2), dtype)
        last = _rows(x_BTC, B, initial.shape[2], C, dtype).transpose(1, 2)
    _kernels().causal_conv1d_fwd(
        x_BCT, _filled_up(weight), _filled_up(bias), None, first, y_BTC.transpose(1, 2), last, silu
    )
    y_BTC = y_BTC[..., :C].contiguous()
    if initial is None or last is None:
        return (y_BTC,)
    return y_BTC, contiguous_like(initial).copy_(last[:, :C])


def run_backward(
    x_BTC: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial: Tensor | None,
    silu: bool,
    dy_BTC: Tensor,
    dfinal: Tensor | None,
    dx_BTC: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias and, where there is one, of the initial state.

    ``dx_BTC`` is where that of x is to be written: groups of channels, laid out as ``channel_last`` has them.
    """
    (B, T, C), dtype = x_BTC.shape, x_BTC.dtype
    weight, bias = _filled_up(weight), _filled_up(bias)
    dx = _rows(x_BTC, B, T, C, dtype) if dx_BTC is None else dx_BTC
    dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
    first = dfirst = dlast = None
    if initial is not None:
        first = channel_last(initial.transpose(1, 2), dtype)
        dfirst = _rows(x_BTC, B, initial.shape[2], C, dtype).transpose(1, 2)
        dlast = None if dfinal is None else channel_last(dfinal.transpose(1, 2), dtype)
    _kernels().causal_conv1d_bwd(
        channel_last(x_BTC, dtype),
        weight,
        bias,
        channel_last(dy_BTC, dtype),
        None,
        first,
        dlast,
        dx.transpose(1, 2),
        dweight,
        dbias,
        dfirst,
        silu,
    )
    grads = dx[..., :C].contiguous() if dx_BTC is None else dx, dweight[:C].contiguous(), dbias[:C].contiguous()
    if initial is None or dfirst is None:
        return grads
    return *grads, contiguous_like(initial).copy_(dfirst[:, :C])


def _forward(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, silu: bool) -> tuple[Tensor, ...]:
    return run_forward(x, weight, bias, initial, silu)


def _backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    initial: Tensor,
    silu: bool,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    return run_backward(x, weight, bias, initial, silu, torch.zeros_like(x) if dy is None else dy, dfinal)


def _fake(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, silu: bool) -> tuple[Tensor, ...]:
    return contiguous_like(x), contiguous_like(initial)


def _fake_gradients(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(contiguous_like(t) for t in (x, weight, bias, initial))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.silu = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    backward = torch.ops.groundthink.causal_conv1d_causal_conv1d_backward
    return *backward(*ctx.saved_tensors, ctx.silu, dy, dfinal), None
