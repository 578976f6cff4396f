"""The C++ operations in Python: loaded once, with their shapes for tracing and their gradients for autograd."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu.build import build


@cache
def load() -> None:
    """Load the library, building it if need be, and register what autograd and tracing must know.

    Raises ``KernelBuildError`` when the compiler fails.
    """
    torch.ops.load_library(str(build()))  # type: ignore[no-untyped-call]
    fakes: dict[str, Callable[..., Any]] = {"wkv6": _fake_wkv6, "ssd": _fake_ssd, "causal_conv1d": _fake_causal_conv1d}
    for op, fake in fakes.items():
        torch.library.register_fake(f"groundthink::{op}", fake)
        torch.library.register_autograd(f"groundthink::{op}", _backward_of(op), setup_context=_save_inputs)
        torch.library.register_fake(f"groundthink::{op}_backward", _fake_backward)
        torch.library.register_autograd(f"groundthink::{op}_backward", _no_second_derivative)


def wkv6_cpp(
    r_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_w_BTHK: Tensor, u_HK: Tensor, initial_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-6 time mixing: see ``kernels.wkv6``. All tensors share one dtype, fp32 or fp64."""
    y_BTHV, final_BHKV = torch.ops.groundthink.wkv6(r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, initial_BHKV)
    return y_BTHV, final_BHKV


def ssd_cpp(
    x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, initial_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence: see ``kernels.ssd``. All tensors share one dtype, fp32 or fp64."""
    y_BTHP, final_BHPN = torch.ops.groundthink.ssd(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, initial_BHPN)
    return y_BTHP, final_BHPN


def causal_conv1d_cpp(
    x_BTC: Tensor, weight_Cw: Tensor, bias_C: Tensor, initial_BCw: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution: see ``kernels.causal_conv1d``. All tensors share one dtype, fp32 or fp64."""
    y_BTC = torch.ops.groundthink.causal_conv1d(x_BTC, weight_Cw, bias_C, initial_BCw)
    memory, T = initial_BCw.shape[2], x_BTC.shape[1]
    recent_BCw = x_BTC[:, max(T - memory, 0) :].transpose(1, 2)
    final_BCw = torch.cat([initial_BCw[:, :, recent_BCw.shape[2] :], recent_BCw], dim=2)
    return (F.silu(y_BTC) if activation == "silu" else y_BTC), final_BCw


def _fake_wkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return _contiguous_like(v), _contiguous_like(initial)


def _fake_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return _contiguous_like(x), _contiguous_like(initial)


def _fake_causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor) -> Tensor:
    return _contiguous_like(x)


def _fake_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    """One gradient an input: the arguments are the inputs, of which the initial state is last, and what follows it."""
    num_outputs = 1 if len(tensors) == 5 else 2
    return tuple(_contiguous_like(t) for t in tensors[:-num_outputs])


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward_of(op: str) -> Any:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return getattr(torch.ops.groundthink, f"{op}_backward")(*ctx.saved_tensors, *grads)

    return backward


def _no_second_derivative(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError(
        "the C++ kernels have no second derivative; compute it with kernels.backends.force(op, 'reference')"
    )
