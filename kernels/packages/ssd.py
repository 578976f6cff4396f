"""Mamba-2's recurrence on mamba-ssm: ``mamba_chunk_scan_combined`` with both states, as one opaque operation.

The package's own autograd function is a thin shell around the two functions that are called here; within an opaque
operation it would only add a second graph.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.packages.mamba_modules import combined
from kernels.packages.opaque import define
from kernels.registration import contiguous_like, register
from kernels.shapes import KernelInputError

# The second dimension of a launch grid
_MAX_PROGRAMS = 65535


@cache
def load() -> None:
    """Import the kernels and register the operation. Raises ``BackendError``."""
    combined()
    inputs = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor initial"
    define(f"ssd_mamba_ssm({inputs}) -> (Tensor, Tensor)", _forward)
    define(
        f"ssd_mamba_ssm_backward({inputs}, Tensor? dy, Tensor? dfinal) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _backward,
    )
    register("ssd_mamba_ssm", _fake, _gradients, _save, _fake_gradients)


def ssd_mamba_ssm(
    x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, initial_BHPN: Tensor
) -> tuple[Tensor, Tensor]:
    """Mamba-2's recurrence: see ``kernels.ssd``. x, B and C share fp32, bf16 or fp16; dt, A and the state are fp32.

    The state is carried from chunk to chunk in fp32. With x in 16 bits the package rounds to them the states that the
    output is read from, and the gradients of x, B, C, y and of the initial state; in fp32 nothing is rounded.
    NaN and inf of a position reach all positions of its chunk (``chunk_length``) and those after it.

    Raises ``KernelInputError`` for fp64 and for more chunks than a launch takes.
    """
    _check(x_BTHP)
    y_BTHP, final_BHPN = torch.ops.groundthink.ssd_mamba_ssm(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, initial_BHPN)
    return y_BTHP, final_BHPN


def chunk_length(T: int, dtype: torch.dtype) -> int:
    """Positions of a chunk: a power of two, 16 at least.

    Within a chunk the work grows with its length, and every chunk writes a state of P x N. The logarithms of a chunk's
    decays are summed up in fp32, and with the sum grows its rounding: where every position forgets all but e^-4 to
    e^-55, the gradient of A is off by 1.4e-4 with chunks of 64 and by 3e-5 with 32, which fp32 therefore gets.
    """
    if dtype == torch.float32:
        return 32
    return 64 if T <= 512 else 128


def _check(x_BTHP: Tensor) -> None:
    B, T = x_BTHP.shape[:2]
    if x_BTHP.dtype == torch.float64:
        raise KernelInputError(
            "ssd: mamba-ssm does not compute in float64; pass float32, or set GROUNDTHINK_SSD=chunked, which does"
        )
    chunks = B * -(-T // chunk_length(T, x_BTHP.dtype))
    if chunks > _MAX_PROGRAMS:
        raise KernelInputError(
            f"ssd: {B} rows of {T} positions are {chunks} chunks, and mamba-ssm takes {_MAX_PROGRAMS} at most; "
            "split the batch, or carry the state from piece to piece"
        )


def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    y, _, _, _, _, final = combined()._mamba_chunk_scan_combined_fwd(
        x, dt, A, B, C, chunk_length(x.shape[1], x.dtype), initial_states=initial
    )
    return y, final


def _backward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    dy: Tensor | None,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    dy = torch.zeros_like(x) if dy is None else dy
    # where the output stands, the package wants a tensor of its shape, which it does not read: there is no gate z
    dx, ddt, dA, dB, dC, _, _, _, dinitial = combined()._mamba_chunk_scan_combined_bwd(
        dy, x, dt, A, B, C, x, chunk_length(x.shape[1], x.dtype), initial_states=initial, dfinal_states=dfinal
    )
    return dx, ddt, dA, dB, dC, dinitial.to(initial.dtype)


def _fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    return contiguous_like(x), contiguous_like(initial)


def _fake_gradients(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    dt, A, B, C, initial = others[:5]
    return *(torch.empty_like(t) for t in (x, dt, A, B, C)), contiguous_like(initial)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> Any:
    return torch.ops.groundthink.ssd_mamba_ssm_backward(*ctx.saved_tensors, dy, dfinal)
