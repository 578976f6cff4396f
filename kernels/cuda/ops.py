"""The CUDA operations in Python: loaded once, with their shapes for tracing and their gradients for autograd."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.cuda.build import build
from kernels.registration import contiguous_like, register

# As in wkv6.h
_CHUNK = 16


@cache
def load() -> None:
    """Load the library, building it if need be, and register what autograd and tracing must know.

    Raises ``KernelBuildError`` when it cannot be built.
    """
    torch.ops.load_library(str(build()))  # type: ignore[no-untyped-call]
    register_all()


def register_all() -> None:
    """Shapes and gradients of the operations of the loaded library."""
    register("wkv6_cuda", _fake_wkv6, _wkv6_gradients, _save_wkv6, _fake_wkv6_gradients)
    register("cross_entropy_cuda", _fake_loss, _loss_gradient, _save_loss, _fake_loss_gradient)


def wkv6_cuda(
    r_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_w_BTHK: Tensor, u_HK: Tensor, initial_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """RWKV-6 time mixing: see ``kernels.wkv6``. K = V = 32 or 64.

    r, k and v share fp32, bf16 or fp16; log_w is in that dtype or in fp32, u and the state in fp32.
    """
    inputs = (r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, initial_BHKV)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    y_BTHV, final_BHKV, _, _ = torch.ops.groundthink.wkv6_cuda(*inputs, keep)
    return y_BTHV, final_BHKV


def cross_entropy_cuda(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross entropy in nats: see ``kernels.cross_entropy``. Logits in fp32, bf16 or fp16, the loss in fp32."""
    loss: Tensor = torch.ops.groundthink.cross_entropy_cuda(logits_NV, targets_N)[0]
    return loss


def _fake_wkv6(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, initial: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, D = v.shape
    chunks = B * H * ((T + _CHUNK - 1) // _CHUNK) if keep else 0
    # numbers in 16 bits, and what the rounding left beside them where the values are finer than that
    planes = 1 if v.dtype == torch.bfloat16 else 2
    checkpoints = v.new_empty(chunks * planes * D * D * 2, dtype=torch.uint8)
    scores = v.new_empty(chunks * _CHUNK * _CHUNK, dtype=torch.float32)
    return contiguous_like(v), contiguous_like(initial), checkpoints, scores


def _fake_wkv6_gradients(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    checkpoints: Tensor,
    scores: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    B, _, H, D = v.shape
    return *(contiguous_like(tensor) for tensor in (r, k, v, log_w, u)), u.new_empty(B, H, D, D)


def _save_wkv6(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _ = inputs
    _, _, checkpoints, scores = output
    ctx.mark_non_differentiable(checkpoints, scores)
    # else every call would fill gradients of the checkpoints with zeros, for nobody
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, checkpoints, scores)


def _wkv6_gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    return *torch.ops.groundthink.wkv6_cuda_backward(*ctx.saved_tensors, dy, dfinal), None


def _fake_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=torch.float32), logits.new_empty((logits.shape[0], 3), dtype=torch.float32)


def _fake_loss_gradient(logits: Tensor, targets: Tensor, stats: Tensor, dloss: Tensor) -> Tensor:
    return contiguous_like(logits)


def _save_loss(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _loss_gradient(ctx: Any, dloss: Tensor | None, _: None) -> tuple[Tensor | None, None]:
    if dloss is None:
        return None, None
    return torch.ops.groundthink.cross_entropy_cuda_backward(*ctx.saved_tensors, dloss), None
