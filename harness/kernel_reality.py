"""G0's measurements of execution: which kernels a model really runs, and whether it would show if it ran others.

An import proves nothing, and neither does a name in a table. What counts is what a profiler saw run, beside the calls
that the registry of backends counted. The detectors are themselves tested, by controls that must show.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import kernels
from harness.config import RunConfig
from harness.data import Tokens
from harness.determinism import deterministic
from harness.errors import HarnessError
from harness.evaluation import autocast
from harness.step import Choice, TrainingStep, choose
from harness.training_job import resolve_dtype
from kernels import backends
from kernels.backends import Backend

if TYPE_CHECKING:
    from kernels.packages import Installed

# The operations a branch calls, once a layer each
OPS_OF_BRANCH = {"rwkv": ("wkv6",), "mamba": ("causal_conv1d", "ssd")}
# What a training calls beside them, once a pass
OPS_OF_LOSS = ("cross_entropy",)
# Updates of a training before the one that is looked at: the first ones compile, the third captures a graph
_UPDATES_BEFORE = 3
# Backends that are packages of others
PACKAGES = ("mamba_ssm", "causal_conv1d")

Kernel = Callable[..., Any]
# Runs a function on a device type and says what it executed there, by name, with counts
Profiler = Callable[[Callable[[], object], str], Counter[str]]


class BlindProfilerError(HarnessError):
    """The profiler saw nothing run at all, so that it proves nothing."""


def profiled(run: Callable[[], object], device: str) -> Counter[str]:
    """What ``run`` executes, by name, with counts: device kernels on a GPU, operators on a CPU."""
    on_gpu = device == "cuda"
    # of a GPU's kernels alone: thousands of operators on the CPU would be recorded only to be left out
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    events = [event for event in profiler.events() or [] if event.device_type.name == device.upper()]
    return Counter(event.name for event in events if not event.is_user_annotation)


def traces_of(backend: Backend, device: str) -> tuple[str, ...]:
    """Regular expressions for what a profiler sees of a backend; none where plain PyTorch runs, which has many users.

    On a GPU they are the kernels that the backend launches, on a CPU the operators of the C++ library.
    """
    if device == "cpu" and backend.name == "cpp":
        return rf"^groundthink::{backend.op}$", rf"^groundthink::{backend.op}_backward$"
    return backend.launches


@dataclass(frozen=True)
class Execution:
    """What one forward and backward pass executed of one operation.

    least      calls that the layers of the model make
    calls      of the chosen backend, as the registry counted them; reference_calls: of the reference
    seen       what a profiler must see of the backend -> how often it did
    names      what it saw of it, by name
    """

    op: str
    backend: str
    reason: str
    least: int
    calls: int
    reference_calls: int
    seen: Mapping[str, int]
    names: Mapping[str, int]

    @property
    def unseen(self) -> list[str]:
        """What a profiler did not see in every call."""
        return [trace for trace, count in self.seen.items() if count < self.least]

    @property
    def described(self) -> str:
        """The names that were seen, with counts."""
        return ", ".join(f"{name} x{count}" for name, count in self.names.items())


def expected_calls(model: nn.Module) -> dict[str, int]:
    """How often one pass must call each operation: once a layer of each branch that uses it, and the loss once.

    Empty for a model whose layers call none of them.
    """
    calls: Counter[str] = Counter()
    for branch, mixers in model.branch_modules().items():  # type: ignore[operator]
        for op in OPS_OF_BRANCH.get(branch, ()):
            calls[op] += len(mixers)
    return {**calls, **dict.fromkeys(OPS_OF_LOSS, 1)} if calls else {}


def executions(
    model: nn.Module,
    tokens_BT: Tensor,
    expected: Mapping[str, int],
    dtype: torch.dtype = torch.float32,
    profiler: Profiler = profiled,
) -> list[Execution]:
    """What one forward and backward pass executes of each operation of ``expected``.

    ``dtype`` is that of the matrix products. Raises ``BlindProfilerError``.
    """
    calls, names = _observed(lambda: forward_backward(model, tokens_BT, dtype), tokens_BT.device.type, profiler)
    return [_execution(op, least, tokens_BT.device.type, calls, names) for op, least in expected.items()]


def execution_alone(op: str, inputs: Mapping[str, Tensor], device: str, profiler: Profiler = profiled) -> Execution:
    """The same of one forward and backward pass of an operation by itself. Raises ``BlindProfilerError``."""
    return _execution(op, 1, device, *_observed(lambda: run_operation(op, inputs), device, profiler))


def executions_in_training(
    model: nn.Module,
    config: RunConfig,
    batch: tuple[Tokens, Tokens],
    expected: Mapping[str, int],
    profiler: Profiler = profiled,
) -> tuple[Choice, list[Execution]]:
    """What one update of a training executes, and how it is taken: operation by operation, or as a CUDA graph.

    A replayed graph calls nothing that a registry could count, so ``calls`` is 0 there; the profiler sees its kernels.
    The model is trained by a few updates. Raises ``BlindProfilerError``.
    """
    device = next(model.parameters()).device.type
    choice = choose(model, config.train, device)
    update = TrainingStep(model.train(), config.train, dtype=resolve_dtype(config, device), mode=choice.mode)
    try:
        for step in range(_UPDATES_BEFORE):
            update(*batch, step)
        before = backends.calls.copy()
        names = profiler(lambda: update(*batch, _UPDATES_BEFORE), device)
    finally:
        update.close()
    calls = backends.calls - before
    return choice, [_execution(op, least, device, calls, names) for op, least in expected.items()]


def _execution(
    op: str, least: int, device: str, calls: Mapping[tuple[str, str], int], names: Mapping[str, int]
) -> Execution:
    choice = backends.select(op, device)
    traces = traces_of(backends.get(op, choice.name), device)
    if traces and not names:
        raise BlindProfilerError(
            "the profiler saw nothing run at all, so it cannot tell which kernels do; on a GPU it needs CUPTI: "
            "see that torch.profiler records CUDA activities on this machine"
        )
    matching = {trace: {name: n for name, n in names.items() if re.search(trace, name)} for trace in traces}
    return Execution(
        op=op,
        backend=choice.name,
        reason=choice.reason,
        least=least,
        calls=calls.get((op, choice.name), 0),
        reference_calls=calls.get((op, backends.REFERENCE), 0),
        seen={trace: sum(found.values()) for trace, found in matching.items()},
        names={_short(name): count for found in matching.values() for name, count in found.items()},
    )


def forward_backward(
    model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits, loss, and the gradients of the loss for every parameter that has one, as a training computes them."""
    with autocast(tokens_BT.device, dtype):
        logits_BTV = model(tokens_BT[:, :-1])
    loss = kernels.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return logits_BTV.detach(), loss.detach(), [g for g in gradients if g is not None]


def run_operation(op: str, inputs: Mapping[str, Tensor]) -> None:
    """One forward and backward pass of a public operation on inputs by name."""
    given = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}
    result = getattr(kernels, op)(**given)
    outputs = (result,) if isinstance(result, Tensor) else result
    torch.autograd.backward([output.float().sum() for output in outputs])


def is_deterministic(
    model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype = torch.float32, *, poisoned: bool = False
) -> bool:
    """Whether two passes give the same bits, gradients included.

    ``poisoned`` fills all memory that torch hands out unwritten with NaN, which shows what is read from it.
    """
    with ExitStack() as stack:
        if poisoned:
            stack.enter_context(deterministic())
        first, again = (_flat(forward_backward(model, tokens_BT, dtype)) for _ in range(2))
    # NaN is not equal to itself
    return len(first) == len(again) and all(map(torch.equal, first, again))


def failed_controls(
    model: nn.Module,
    tokens_BT: Tensor,
    ops: Iterable[str],
    dtype: torch.dtype = torch.float32,
    profiler: Profiler = profiled,
) -> list[str]:
    """What the detectors miss: empty when a forced reference, a raising kernel and a poisoned output all show."""
    missed = []
    for op in ops:
        with backends.force(op, backends.REFERENCE):
            [forced] = executions(model, tokens_BT, {op: 1}, dtype, profiler)
        if not forced.reference_calls:
            missed.append(f"{op}: the reference was forced and the call counter did not show it")
        if any(forced.seen.values()):
            missed.append(f"{op}: the reference was forced and the profiler still saw {forced.described}")
        if not _raises(model, tokens_BT, op, dtype):
            missed.append(f"{op}: the kernel raised and the model went on")
        with backends.wrap(op, _poisoned):
            logits_BTV, loss, _ = forward_backward(model, tokens_BT, dtype)
        if torch.isfinite(logits_BTV).all() and torch.isfinite(loss):
            missed.append(f"{op}: the kernel wrote NaN, and logits and loss are finite")
    return missed


def posing_stubs(parts: "Iterable[Installed]") -> list[str]:
    """Parts of packages that are not real, though the backend in use on a GPU is the one that runs on them."""
    posing = []
    for part in parts:
        if part.kind != "real" and part.gives in backends.OPS:
            name = backends.select(part.gives, "cuda").name
            if name in PACKAGES:
                posing.append(f"{part.gives} runs as {name}, but {part.part} is {part.kind}: {part.note}")
    return posing


def _observed(
    run: Callable[[], object], device: str, profiler: Profiler
) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """Calls by (operation, backend) and names seen by the profiler, of one run."""
    # before it, one more: the first compiles, and may launch kernels to find the fastest
    run()
    before = backends.calls.copy()
    names = profiler(run, device)
    return backends.calls - before, names


def _short(name: str) -> str:
    """The name of a kernel without return type, anonymous namespaces and parameters."""
    return re.sub(r"\(anonymous namespace\)::|\((int|bool)\)|^void ", "", name).partition("(")[0]


def _flat(passed: tuple[Tensor, Tensor, list[Tensor]]) -> list[Tensor]:
    logits_BTV, loss, gradients = passed
    return [logits_BTV, loss, *gradients]


class _PlantedError(RuntimeError):
    """Raised by a kernel on purpose; a ``RuntimeError``, as kernels raise when they fail."""


def _raises(model: nn.Module, tokens_BT: Tensor, op: str, dtype: torch.dtype) -> bool:
    try:
        with backends.wrap(op, _raising):
            forward_backward(model, tokens_BT, dtype)
    except _PlantedError:
        return True
    return False


def _raising(_: Kernel) -> Kernel:
    def kernel(*inputs: Any) -> Any:
        raise _PlantedError

    return kernel


def _poisoned(kernel: Kernel) -> Kernel:
    def wrapped(*inputs: Any) -> Any:
        result = kernel(*inputs)
        y, *final = (result,) if isinstance(result, Tensor) else result
        y = y * float("nan")
        return (y, *final) if final else y

    return wrapped


def planted(wrappers: Mapping[str, Callable[[Kernel], Kernel]]) -> ExitStack:
    """Keep a mutant's kernel defects in place until the stack is closed."""
    stack = ExitStack()
    for op, wrapper in wrappers.items():
        stack.enter_context(backends.wrap(op, wrapper))
    return stack
