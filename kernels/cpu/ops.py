"""The C++ operations in Python: loaded once, with their shapes for tracing and their gradients for autograd."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.cpu.build import build
from kernels.registration import Rule, contiguous_like, register


@cache
def load() -> None:
    """Load the library, building it if need be, and register what autograd and tracing must know.

    Raises ``KernelBuildError`` when the compiler fails.
    """
    # in the process that has just built it this is the same library once more, not a second one
    torch.ops.load_library(str(build()))  # type: ignore[no-untyped-call]
    register("wkv6", _fake_wkv6, _gradients_of("wkv6"), _save_inputs, _fake_gradients)
    register("ssd", _fake_ssd, _gradients_of("ssd"), _save_inputs, _fake_gradients)
    register("causal_conv1d", _fake_causal_conv1d, _gradients_of("causal_conv1d"), _save_inputs, _fake_gradients)
    register("cross_entropy", _fake_loss, _loss_gradient, _save_loss, _fake_loss_gradient)
    register("rms_norm", _fake_norm, _norm_gradients, _save_norm, _fake_norm_gradients)
    register("gated_rms_norm", _fake_norm, _gated_norm_gradients, _save_norm, _fake_norm_gradients)


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


def cross_entropy_cpp(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats: see ``kernels.cross_entropy``. Logits in fp32 or fp64."""
    loss: Tensor = torch.ops.groundthink.cross_entropy(logits_NV, targets_N)[0]
    return loss


def rms_norm_cpp(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm: see ``kernels.rms_norm``. All tensors share one dtype, fp32 or fp64."""
    y_RD: Tensor = torch.ops.groundthink.rms_norm(x_BTD.flatten(0, 1), weight_D[None], eps)[0]
    return y_RD.view(x_BTD.shape)


def gated_rms_norm_cpp(x_BTD: Tensor, z_BTD: Tensor, weight_D: Tensor, eps: float, num_groups: int) -> Tensor:
    """RMSNorm of ``x silu(z)``: see ``kernels.gated_rms_norm``. All tensors share one dtype, fp32 or fp64."""
    weight_GS = weight_D.view(num_groups, -1)
    x_RS, z_RS = (t.reshape(-1, weight_GS.shape[1]) for t in (x_BTD, z_BTD))
    y_RS: Tensor = torch.ops.groundthink.gated_rms_norm(x_RS, z_RS, weight_GS, eps)[0]
    return y_RS.view(x_BTD.shape)


def _fake_wkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return contiguous_like(v), contiguous_like(initial)


def _fake_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return contiguous_like(x), contiguous_like(initial)


def _fake_causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor) -> Tensor:
    return contiguous_like(x)


def _fake_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(()), logits.new_empty((logits.shape[0], 2), dtype=torch.float64)


def _fake_norm(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return contiguous_like(x), x.new_empty(x.shape[0])


def _fake_loss_gradient(logits: Tensor, targets: Tensor, stats: Tensor, dloss: Tensor) -> Tensor:
    return contiguous_like(logits)


def _fake_norm_gradients(*inputs: Any) -> tuple[Tensor, ...]:
    """One gradient a tensor that stands before eps, the scale and the gradient of the output."""
    return tuple(contiguous_like(t) for t in inputs[:-3])


def _fake_gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
    """One gradient an input: the arguments are the inputs, of which the initial state is last, and what follows it."""
    num_outputs = 1 if len(tensors) == 5 else 2
    return tuple(contiguous_like(t) for t in tensors[:-num_outputs])


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients_of(op: str) -> Rule:
    def gradients(ctx: Any, *grads: Tensor) -> Any:
        return getattr(torch.ops.groundthink, f"{op}_backward")(*ctx.saved_tensors, *grads)

    return gradients


def _save_loss(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _loss_gradient(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return torch.ops.groundthink.cross_entropy_backward(*ctx.saved_tensors, dloss), None


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _norm_gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, scale = ctx.saved_tensors
    return *torch.ops.groundthink.rms_norm_backward(*tensors, ctx.eps, scale, dy), None


def _gated_norm_gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, scale = ctx.saved_tensors
    return *torch.ops.groundthink.gated_rms_norm_backward(*tensors, ctx.eps, scale, dy), None
