"""G0's measurements of correctness: backends against the fp64 oracle and against themselves, and how fast they are.

Outputs, final states and all gradients are compared, over lengths, kinds of decay, head sizes and every dtype that a
backend takes as it is. Products of fp32 are held to fp32 here: on a GPU, torch may be told to compute them in TF32,
whose error is a thousand times larger. (Backends written in Triton, whose default it is, ask for fp32 themselves.)
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.kernel_reality import Kernel, forward_backward, planted, run_operation
from harness.step import exact_float32
from kernels import api, backends
from kernels.backends import Backend
from kernels.parity import (
    DECAYS,
    NARROW,
    OPS_WITH_DECAYS,
    ParityCase,
    carry_errors,
    naive_errors,
    oracles,
    parity_cases,
    rms_error,
    rms_errors,
    worst,
)
from models.config import RWKV_HEAD_SIZES

# Where no layer of the subject says otherwise
SIZE, WKV6_SIZE = 64, 32
# The naive recurrence in 16 bits is compared up to this length, and there the decay of wkv6 comes in 16 bits, too
NAIVE_LENGTH = 257
# One position at a time, and a few parts of unequal length
CARRIES = {"recurrent": (65, tuple(range(1, 65))), "split": (257, (1, 64, 130))}
CARRIED_DECAYS = ("typical", "mixed")
# fp64 on two devices differs by the order of its sums alone
_ORACLES_AGREE = 1e-10
_TIMED_LENGTH, _TIMES = 256, 5


class OracleError(HarnessError):
    """The oracle itself is not what it is on a CPU."""


@dataclass(frozen=True)
class Size:
    """Sizes of the inputs of an operation: of a head (of a pair of channels where there are none), and N of ssd."""

    head: int
    state: int | None = None

    def __str__(self) -> str:
        return f"head size {self.head}" + (f", state size {self.state}" if self.state else "")


@dataclass(frozen=True)
class _Found:
    """The worst error of one quantity of one operation over its cases.

    quantity  ``y``, ``final_state``, ``grad <input>``
    error     ``rms_error``; case: where it was largest
    """

    quantity: str
    dtype: torch.dtype
    size: Size
    error: float
    case: str
    num_cases: int

    @property
    def narrow(self) -> bool:
        """Whether the values had 16 bits."""
        return self.dtype in NARROW

    def variant(self, of: Sequence[Size]) -> list[str]:
        """What tells this from the others of its operation: the size, where there are several, and a 16-bit dtype."""
        size = [str(self.size)] if len(of) > 1 else []
        return [*size, *([str(self.dtype).removeprefix("torch.")] if self.narrow else [])]


@dataclass(frozen=True)
class Parity(_Found):
    """An error against the oracle.

    over_naive  error over that of the naive recurrence in the same 16-bit dtype, worst over the cases where it was run;
                None in fp32; naive_case: where
    """

    over_naive: float | None
    naive_case: str


@dataclass(frozen=True)
class Carry(_Found):
    """The difference between one pass and passes over its parts, each from the state of the one before.

    way  ``recurrent`` (one position at a time) or ``split`` (a few parts)
    """

    way: str


def sizes_used(model: nn.Module, tokens_BT: Tensor) -> dict[str, set[Size]]:
    """The sizes with which a model calls the operations, by operation; those that it does not call are left out."""
    found: dict[str, set[Size]] = defaultdict(set)

    def watch(op: str) -> Callable[[Kernel], Kernel]:
        def wrapper(kernel: Kernel) -> Kernel:
            def wrapped(*inputs: Any) -> Any:
                found[op].add(_size_of(op, inputs))
                return kernel(*inputs)

            return wrapped

        return wrapper

    with torch.no_grad(), planted({op: watch(op) for op in ("wkv6", "ssd", "causal_conv1d")}):
        model(tokens_BT)
    return dict(found)


def sizes_to_compare(op: str, device: str, used: Mapping[str, set[Size]]) -> list[Size]:
    """The sizes that the subject uses, or one that stands for them; of wkv6 on a GPU all that its kernel has."""
    sizes = set(used.get(op, ()))
    if op == "wkv6" and device == "cuda":
        sizes |= {Size(size) for size in RWKV_HEAD_SIZES}
    return sorted(sizes or {Size(WKV6_SIZE if op == "wkv6" else SIZE)}, key=str)


def dtypes_of(backend: Backend) -> list[torch.dtype]:
    """What a backend is compared in: fp32, and the 16-bit dtypes that it takes as they are."""
    return [torch.float32, *(dtype for dtype in NARROW if str(dtype).removeprefix("torch.") in backend.native)]


def parities(
    op: str, backend: str, *, device: str, size: Size, dtypes: Sequence[torch.dtype]
) -> dict[torch.dtype, list[Parity]]:
    """Errors of a backend against the fp64 oracle, by dtype and quantity, worst over lengths and kinds of decay.

    In 16 bits it is also held against the naive recurrence in the same dtype. The backend is called case by case, as a
    training would; the oracle, which is slow, takes all cases of a length together. Raises ``OracleError``.
    """
    if device != "cpu":
        _require_the_same_oracle(op, device)
    cases = {dtype: _cases(op, dtype) for dtype in dtypes}
    compared: dict[tuple[torch.dtype, ParityCase], _Compared] = {}
    with exact_float32():
        for length in sorted({case.length for of_dtype in cases.values() for case in of_dtype}):
            keys = [(dtype, case) for dtype in dtypes for case in cases[dtype] if case.length == length]
            compared |= _compared(op, backend, keys, device, size)
    return {
        dtype: list(_rows(dtype, size, {str(case): compared[dtype, case] for case in cases[dtype]})) for dtype in dtypes
    }


@dataclass(frozen=True)
class _Compared:
    """Errors of one case, by quantity; naive: those of the naive recurrence, empty where it was not run."""

    errors: Mapping[str, float]
    naive: Mapping[str, float]


def _compared(
    op: str, backend: str, keys: Sequence[tuple[torch.dtype, ParityCase]], device: str, size: Size
) -> dict[tuple[torch.dtype, ParityCase], _Compared]:
    """Cases of one length."""
    truth = oracles(op, [case.inputs(size.head, dtype, device, size.state) for dtype, case in keys])
    by_key = dict(zip(keys, truth, strict=True))
    naive: dict[tuple[torch.dtype, ParityCase], dict[str, float]] = {}
    for narrow in NARROW:
        of_dtype = {key: oracle for key, oracle in by_key.items() if key[0] == narrow and key[1].length <= NAIVE_LENGTH}
        if of_dtype:
            naive |= zip(of_dtype, naive_errors(list(of_dtype.values())), strict=True)
    with backends.force(op, backend):
        return {key: _Compared(oracle.errors(getattr(api, op)), naive.get(key, {})) for key, oracle in by_key.items()}


def _rows(dtype: torch.dtype, size: Size, compared: Mapping[str, _Compared]) -> Iterator[Parity]:
    for quantity in next(iter(compared.values())).errors:
        errors = {case: found.errors[quantity] for case, found in compared.items()}
        ratios = {
            case: _ratio(found.errors[quantity], found.naive[quantity])
            for case, found in compared.items()
            if found.naive
        }
        case_name, error = worst(errors)
        naive_case, ratio = worst(ratios) if ratios else ("", None)
        yield Parity(quantity, dtype, size, error, case_name, len(errors), ratio, naive_case)


def carries(op: str, backend: str, *, device: str, size: Size) -> Iterator[Carry]:
    """One pass against passes over its parts, in fp32: the worst quantity of each way."""
    decays = CARRIED_DECAYS if op in OPS_WITH_DECAYS else DECAYS[:1]
    for way, (length, cuts) in CARRIES.items():
        errors: dict[tuple[str, str], float] = {}
        for case in (ParityCase(op, length, kind) for kind in decays):
            inputs = case.inputs(size.head, device=device, state_size=size.state)
            with exact_float32():
                found = carry_errors(op, backend, inputs, cuts)
            errors |= {(quantity, str(case)): error for quantity, error in found.items()}
        (quantity, case_name), error = worst(errors)
        yield Carry(quantity, torch.float32, size, error, case_name, len(errors), way)


def model_errors(model: nn.Module, tokens_BT: Tensor) -> dict[str, float]:
    """The model on its kernels against itself with every operation on the reference: ``logits`` and ``gradients``.

    In fp32, forward and backward. It holds what no operation shows alone: kernels that stand for several operations,
    strides and shapes as the layers pass them, and what lies between.
    """
    with exact_float32():
        logits_BTV, _, gradients = forward_backward(model, tokens_BT)
        with ExitStack() as stack:
            for op in backends.OPS:
                stack.enter_context(backends.force(op, backends.REFERENCE))
            expected_BTV, _, expected = forward_backward(model, tokens_BT)
    flat, expected_flat = (torch.cat([g.flatten() for g in grads]) for grads in (gradients, expected))
    return {"logits": rms_error(logits_BTV, expected_BTV), "gradients": rms_error(flat, expected_flat)}


def speed_up(op: str, backend: str, *, device: str, size: Size, dtype: torch.dtype = torch.float32) -> float:
    """How many times faster a backend is than the reference, forward and backward: the ratio of medians.

    Both take turns on the same small input. A description of this machine in this moment, and no more.
    """
    inputs = ParityCase(op, _TIMED_LENGTH).inputs(size.head, dtype, device, size.state)
    seconds: dict[str, list[float]] = {backend: [], backends.REFERENCE: []}
    for _ in range(_TIMES):
        for name, taken in seconds.items():
            with backends.force(op, name):
                taken.append(_timed(op, inputs, device))
    # the first turn compiles
    own, reference = (statistics.median(taken[1:]) for taken in seconds.values())
    return reference / own


def _cases(op: str, dtype: torch.dtype) -> list[ParityCase]:
    cases = list(parity_cases(op))
    if op == "wkv6" and dtype in NARROW:
        cases += [replace(case, coarse=True) for case in cases if case.length == NAIVE_LENGTH]
    return cases


def _ratio(error: float, naive: float) -> float:
    """An error over that of the naive recurrence, which is no yardstick where it is not finite."""
    if not math.isfinite(naive) or error == 0:
        return 0.0
    return error / naive if naive else math.inf


def _require_the_same_oracle(op: str, device: str) -> None:
    inputs = ParityCase(op, 64).inputs(32)
    there = {name: tensor.to(device) for name, tensor in inputs.items()}
    [here], [found] = oracles(op, [inputs]), oracles(op, [there])
    for name, error in rms_errors(found.expected, here.expected).items():
        if not error <= _ORACLES_AGREE:
            raise OracleError(
                f"the fp64 oracle of {op} gives another {name} on {device} than on the CPU: relative error "
                f"{error:.1e}, allowed {_ORACLES_AGREE:.0e}; this GPU or this build of torch computes fp64 wrongly"
            )


def _size_of(op: str, inputs: Sequence[Any]) -> Size:
    last = inputs[0].shape[-1]
    if op == "ssd":
        N = inputs[3].shape[-1]
        return Size(last, None if last == N else N)
    # a case of the convolution has two channels for each of its size
    return Size(last // 2 if op == "causal_conv1d" else last)


def _timed(op: str, inputs: Mapping[str, Tensor], device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    run_operation(op, inputs)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
