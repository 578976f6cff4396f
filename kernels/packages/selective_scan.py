r"""Mamba-1's scan on mamba-ssm's ``selective_scan_cuda``, with the states that the kernel does not have.

The kernel starts from zeros, and ignores the gradient of its last state. Both states are therefore carried by steps of
its own, N before the text that write the initial state column by column, and N after it that read the final state:

    write n    B = e_n,  u_c = S_0[c, n] / (s_c exp(s_c A_cn (N-1-n)))       the later writes fade it to S_0[c, n]
    read n     C = e_n,  u = 0,  so  y_c = exp(s_c A_cn (n+1)) S_T[c, n]     and S_T is y over that factor

The step ``s_c = STEP / (1 + N max_n |A_cn|)`` keeps every factor within STEP of 1. This is algebra, not an
approximation, and all gradients come from the kernel; what the added steps give that of A, and the factors take away
again, is as small as the steps are. It costs 2 N steps, 32 at Mamba-1's N of 16.
"""

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.packages.opaque import define
from kernels.registration import contiguous_like, register
from kernels.shapes import KernelInputError

MODULE = "selective_scan_cuda"

STEP = 2.0**-20
_MAX_STATE = 256
# Positions between which the kernel keeps a state for its backward pass
_CHUNK = 2048


@cache
def load() -> None:
    """Import the kernels and register the operation."""
    _kernels()
    inputs = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D"
    define(f"selective_scan_mamba_ssm({inputs}) -> (Tensor, Tensor)", _forward)
    define(
        f"selective_scan_mamba_ssm_backward({inputs}, Tensor kept, Tensor dy) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward,
    )
    register("selective_scan_mamba_ssm", _fake, _gradients, _save, _fake_gradients)


@cache
def _kernels() -> Any:
    return importlib.import_module(MODULE)


def selective_scan_mamba_ssm(
    u_BTC: Tensor,
    delta_BTC: Tensor,
    A_CN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_C: Tensor,
    initial_BCN: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mamba-1's selective scan: see ``kernels.selective_scan``. All in fp32, with a state size N of 256 at most.

    The gradients of A, B, C and D are summed by atomic additions: their last bits differ from run to run.

    Raises ``KernelInputError`` for a larger state and for fp64.
    """
    if A_CN.shape[1] > _MAX_STATE or u_BTC.dtype == torch.float64:
        given = f"N={A_CN.shape[1]}" if A_CN.shape[1] > _MAX_STATE else "float64"
        raise KernelInputError(
            f"selective_scan: mamba-ssm takes N up to {_MAX_STATE} in float32, not {given}; "
            "set GROUNDTHINK_SELECTIVE_SCAN=reference, which takes any"
        )
    (batch, T, channels), N = u_BTC.shape, A_CN.shape[1]
    step_C = STEP / (1 + N * A_CN.detach().abs().amax(1))
    place_N = torch.arange(N, device=A_CN.device)
    writes_CN = step_C[:, None] * torch.exp(step_C[:, None] * A_CN * (N - 1 - place_N))
    reads_CN = torch.exp(step_C[:, None] * A_CN * (place_N + 1))

    steps_BNC = step_C.expand(batch, N, channels)
    columns_BNN = torch.eye(N, device=A_CN.device, dtype=A_CN.dtype).expand(batch, N, N)
    written_BNC = (initial_BCN / writes_CN).transpose(1, 2)
    y_BCL, _ = torch.ops.groundthink.selective_scan_mamba_ssm(
        _framed(written_BNC, u_BTC, torch.zeros_like(steps_BNC)),
        _framed(steps_BNC, delta_BTC, steps_BNC),
        A_CN.contiguous(),
        _framed(columns_BNN, B_BTN, torch.zeros_like(columns_BNN)),
        _framed(torch.zeros_like(columns_BNN), C_BTN, columns_BNN),
        D_C.contiguous(),
    )
    return y_BCL[..., N : N + T].transpose(1, 2), y_BCL[..., N + T :] / reads_CN


def _framed(before: Tensor, text: Tensor, after: Tensor) -> Tensor:
    """``[B, steps, ...]`` with the steps before and after the text, as the kernel has them: ``[B, ..., steps]``."""
    return torch.cat((before, text, after), dim=1).transpose(1, 2).contiguous()


def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    y, kept = _kernels().fwd(u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, None, False)
    return y, kept


def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, kept: Tensor, dy: Tensor
) -> tuple[Tensor, ...]:
    # neither gate nor bias of delta, no softplus, and no output to compute again
    du, ddelta, dA, dB, dC, dD, _ = _kernels().bwd(
        u, delta, A, B.unsqueeze(1), C.unsqueeze(1), D, None, None, dy.contiguous(), kept, None, None, False, False
    )
    return du, ddelta, dA, dB.squeeze(1), dC.squeeze(1), dD


def _fake(u: Tensor, delta: Tensor, A: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    (batch, channels, steps), N = u.shape, A.shape[1]
    return contiguous_like(delta), A.new_empty(batch, channels, (steps + _CHUNK - 1) // _CHUNK, 2 * N)


def _fake_gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(contiguous_like(t) for t in tensors[:-2])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> Any:
    return torch.ops.groundthink.selective_scan_mamba_ssm_backward(*ctx.saved_tensors, dy)
