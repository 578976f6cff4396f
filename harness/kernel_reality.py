"""G0's measurements: which kernels a model really runs, and whether they compute the right thing.

An import proves nothing: what counts is the calls that were executed, and parity of outputs, states and gradients with
the fp64 oracle on the same inputs. The detectors are themselves tested by controls that must show.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.soundness import token_loss
from kernels import backends
from kernels.parity import ParityCase, compare, parity_cases, worst

# The operations a branch calls, once a layer each
OPS_OF_BRANCH = {"rwkv": ("wkv6",), "mamba": ("causal_conv1d", "ssd")}

Kernel = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Parity:
    """The worst error of one quantity of one operation over all cases."""

    op: str
    quantity: str
    error: float
    case: str
    num_cases: int


def parity(op: str, backend: str, *, device: str, head_size: int, dtype: torch.dtype = torch.float32) -> list[Parity]:
    """Relative RMS errors of a backend against the fp64 oracle, worst over lengths and kinds of decay."""
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for case in parity_cases(op):
        for quantity, error in compare(op, backend, _inputs(case, head_size, dtype, device)).items():
            errors[quantity][str(case)] = error
    found = []
    for quantity, by_case in errors.items():
        case_name, error = worst(by_case)
        found.append(Parity(op, quantity, error, case_name, len(by_case)))
    return found


def _inputs(case: ParityCase, head_size: int, dtype: torch.dtype, device: str) -> Mapping[str, Tensor]:
    return case.inputs(head_size, dtype, device)


def expected_calls(model: nn.Module) -> dict[str, int]:
    """How often one forward pass must call each operation: once a layer of each branch that uses it."""
    calls: dict[str, int] = {}
    for branch, mixers in model.branch_modules().items():  # type: ignore[operator]
        for op in OPS_OF_BRANCH.get(branch, ()):
            calls[op] = calls.get(op, 0) + len(mixers)
    return calls


def executed_calls(model: nn.Module, tokens_BT: Tensor) -> Counter[tuple[str, str]]:
    """Calls by (operation, backend) that one forward and backward pass executes."""
    before = backends.calls.copy()
    forward_backward(model, tokens_BT)
    return backends.calls - before


def forward_backward(model: nn.Module, tokens_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and the gradients of the loss for every parameter that has one."""
    logits_BTV = model(tokens_BT[:, :-1])
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = token_loss(logits_BTV, tokens_BT[:, 1:])
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return logits_BTV.detach(), [g for g in gradients if g is not None]


def is_deterministic(model: nn.Module, tokens_BT: Tensor) -> bool:
    """Whether two passes give the same bits, gradients included."""
    (first, first_grads), (again, again_grads) = forward_backward(model, tokens_BT), forward_backward(model, tokens_BT)
    return torch.equal(first, again) and all(map(torch.equal, first_grads, again_grads))


def failed_controls(model: nn.Module, tokens_BT: Tensor, ops: Iterable[str]) -> list[str]:
    """What the detectors miss: empty when a forced reference, a raising kernel and a poisoned output all show."""
    missed = []
    for op in ops:
        with backends.force(op, backends.REFERENCE):
            if not executed_calls(model, tokens_BT)[op, backends.REFERENCE]:
                missed.append(f"{op}: the reference was forced and the call counter did not show it")
        if not _raises(model, tokens_BT, op):
            missed.append(f"{op}: the kernel raised and the model went on")
        with backends.wrap(op, _poisoned), torch.no_grad():
            if bool(torch.isfinite(model(tokens_BT)).all()):
                missed.append(f"{op}: the kernel wrote NaN and the logits are finite")
    return missed


class _PlantedError(Exception):
    """Raised by a kernel on purpose."""


def _raises(model: nn.Module, tokens_BT: Tensor, op: str) -> bool:
    try:
        with backends.wrap(op, _raising), torch.no_grad():
            model(tokens_BT)
    except _PlantedError:
        return True
    return False


def _raising(_: Kernel) -> Kernel:
    def kernel(*inputs: Any) -> tuple[Tensor, Tensor]:
        raise _PlantedError

    return kernel


def _poisoned(kernel: Kernel) -> Kernel:
    def wrapped(*inputs: Any) -> tuple[Tensor, Tensor]:
        y, final = kernel(*inputs)
        return torch.full_like(y, float("nan")), final

    return wrapped


def planted(wrappers: Mapping[str, Callable[[Kernel], Kernel]]) -> ExitStack:
    """Keep a mutant's kernel defects in place until the stack is closed."""
    stack = ExitStack()
    for op, wrapper in wrappers.items():
        stack.enter_context(backends.wrap(op, wrapper))
    return stack
