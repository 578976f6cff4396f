"""Mamba-2's recurrence on mamba-ssm: ``mamba_chunk_scan_combined`` with both states, as one opaque operation.

The package's own autograd function is a thin shell around the two functions that are called here; within an opaque
operation it would only add a second graph.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    """Mamba-2's recurrence: see ``kernels.ssd``. x, B and C share fp32 or bf16; dt, A and the state are fp32.

    The state is carried from chunk to chunk in fp32. With x in bf16 the package rounds to it the states that the
    output is read from, and the gradients of x, B, C, y and of the initial state; in fp32 nothing is rounded. It would
    round to fp16 in the same places, where small gradients of the initial state vanish: fp16 is cast to fp32 before.
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


def fills_chunks(T: int, dtype: torch.dtype) -> bool:
    """Whether ``T`` positions end where a chunk ends."""
    return T % chunk_length(T, dtype) == 0


def _in_whole_chunks(chunk: int, *tensors_BT: Tensor) -> list[Tensor]:
    """With positions put before the first that write nothing and forget nothing, so that the last ends a chunk.

    The package takes the decay from a position to the end of its chunk as a difference of two sums, of which the second
    runs over the padding that it adds behind: in another order, so that it differs where the sums are large, and what
    was written last, whose decay is 1, is off by as much (seen: 13 % at exp(dt A) = 0). Ends that coincide are one sum.
    """
    padding = -tensors_BT[0].shape[1] % chunk
    if padding == 0:
        return list(tensors_BT)
    return [F.pad(t, [0, 0] * (t.dim() - 2) + [padding, 0]) for t in tensors_BT]


def _last(T: int, tensor_BT: Tensor) -> Tensor:
    """The last T positions, in memory of their own where there are others."""
    return tensor_BT if tensor_BT.shape[1] == T else tensor_BT[:, -T:].contiguous()


def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    T = x.shape[1]
    chunk = chunk_length(T, x.dtype)
    x, dt, B, C = _in_whole_chunks(chunk, x, dt, B, C)
    y, _, _, _, _, final = combined()._mamba_chunk_scan_combined_fwd(x, dt, A, B, C, chunk, initial_states=initial)
    return _last(T, y), final


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
    T = x.shape[1]
    chunk = chunk_length(T, x.dtype)
    dy = torch.zeros_like(x) if dy is None else dy
    x, dt, B, C, dy = _in_whole_chunks(chunk, x, dt, B, C, dy)
    # where the output stands, the package wants a tensor of its shape, which it does not read: there is no gate z
    dx, ddt, dA, dB, dC, _, _, _, dinitial = combined()._mamba_chunk_scan_combined_bwd(
        dy, x, dt, A, B, C, x, chunk, initial_states=initial, dfinal_states=dfinal
    )
    return _last(T, dx), _last(T, ddt), dA, _last(T, dB), _last(T, dC), dinitial.to(initial.dtype)


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
