"""One update of a training: forward, backward, gradient norms, clipping, AdamW.

    eager     the model's own forward pass, one operation after the other. Everything works in it: hooks, patches, any
              model, any device
    compiled  the model's ``capturable_forward``: the layers are fused, kernels are still launched one by one
    graphed   compiled, and from the third update on the whole update is one CUDA graph, replayed

Which one a training takes is decided once, before its first update, by ``choose``, and written into the header of its
log with the reason. Nothing falls back: what cannot be compiled or captured after that raises.

Compiled and graphed updates give the same bits, for they run the same kernels in the same order; eager ones round
elsewhere. The first updates of a process are therefore compiled ones, and a training that was interrupted and resumed
is bit-equal to one that was not, though its graph was captured at another step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import kernels
from harness.config import TrainConfig
from harness.data import Tokens
from harness.errors import HarnessError
from harness.evaluation import autocast, to_device
from harness.metrics.gradients import gradient_norms
from harness.optim import branch_parameters, learning_rate, make_optimizer, set_learning_rate
from harness.remedies import Treatment, asked_for

Mode = Literal["eager", "compiled", "graphed"]

Hook = Callable[[nn.Module, int], None]
"""What a patch does to the model in the middle of update ``step`` (from 0)."""

# Updates of a process before its graph is captured. The first compiles the layers and makes the optimizer's state, the
# second finds the memory as every later one will.
UNCAPTURED = 2

# Operations whose reference walks position by position: as a graph that would be thousands of kernels a layer.
_WALKED = ("wkv6", "ssd")


class StepError(HarnessError):
    """The update cannot be taken as asked. The message says why."""


@dataclass(frozen=True)
class Choice:
    """How a training takes its updates, and why."""

    mode: Literal["eager", "graphed"]
    reason: str


def choose(model: nn.Module, config: TrainConfig, device: str, patch: str = "") -> Choice:
    """How to train ``model`` on a device type; ``patch`` names what changes gradients or weights in the middle.

    Raises ``StepError`` when ``config.execution`` demands a graph and there is a reason against it.
    """
    if config.execution == "eager":
        return Choice("eager", "train.execution is eager")
    against = _against_a_graph(model, config, device, patch)
    if against is None:
        return Choice("graphed", "the model offers capturable_forward, and nothing looks inside an update")
    if config.execution == "graphed":
        raise StepError(f"train.execution=graphed: {against}\n  next  --set train.execution=auto trains it eagerly")
    return Choice("eager", against)


def _against_a_graph(model: nn.Module, config: TrainConfig, device: str, patch: str) -> str | None:
    """Why updates of this model cannot be captured here; None when they can."""
    if device != "cuda":
        return f"CUDA graphs need a GPU, and this is {device}"
    if patch:
        return f"the patch {patch} changes gradients or weights in the middle of an update"
    remedies = asked_for(config)
    if remedies:
        return f"{remedies} needs states or writes, which capturable_forward does not give"
    for op in kernels.backends.OPS:
        if kernels.backends.altered(op):
            return f"{op} is forced or wrapped, which a graph would keep"
        if op in _WALKED and kernels.backends.select(op, device).name == kernels.backends.REFERENCE:
            return f"{op} runs on its reference, thousands of kernels a layer"
    return _against_capturing(model)


def _against_capturing(model: nn.Module) -> str | None:
    """What keeps ``capturable_forward`` from being the pass that ``model(tokens)`` is; None when it is."""
    if not hasattr(type(model), "capturable_forward"):
        return f"{type(model).__name__} offers no capturable_forward"
    lineage = type(model).__mro__
    first = {name: next(i for i, base in enumerate(lineage) if name in vars(base)) for name in _PASSES}
    if first["forward"] < first["capturable_forward"]:
        return f"{lineage[first['forward']].__name__} overrides forward, but not capturable_forward"
    for name, module in model.named_modules():
        where = name or type(model).__name__
        if "forward" in vars(module):
            return f"{where} has a forward of its own"
        if any(getattr(module, hooks) for hooks in _MODULE_HOOKS):
            return f"{where} has hooks"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"{name} has hooks"
    return None


_PASSES = ("forward", "capturable_forward")
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Matrix products of fp32 tensors in fp32 inside, not in TF32, whatever was set outside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class TrainingStep:
    """Updates of one model, which must be where it is to be trained, on batches ``[B, T]`` of one shape.

    names  what a call returns, in order: ``loss`` (nats a token, before the update), ``grad_norm`` and
           ``grad_norm_<branch>`` (L2 norms before clipping), then those of ``harness.remedies`` that the configuration
           asks for; ``loss`` is the cross entropy alone, whatever is added to it

    ``before_clip`` and ``after_update`` may change gradients and weights; a graph has no place for them.
    ``close`` gives back what a graph holds.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        dtype: torch.dtype,
        mode: Mode = "eager",
        before_clip: Hook | None = None,
        after_update: Hook | None = None,
    ) -> None:
        assert mode != "graphed" or (before_clip is None and after_update is None), "a graph has no place for hooks"
        self.model, self.config, self.mode, self.dtype = model, config, mode, dtype
        self.before_clip, self.after_update = before_clip, after_update
        self.optimizer = make_optimizer(model, config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.branches = {name: list(members.values()) for name, members in branch_parameters(model).items()}
        self.names = ("loss", "grad_norm", *(f"grad_norm_{branch}" for branch in self.branches))
        self.forward: Callable[[Tensor], Tensor] = model
        self.treatment = Treatment(model, config) if asked_for(config) else None
        if self.treatment is not None:
            assert mode == "eager", "states and writes are seen in the model's own pass only"
            self.names = (*self.names, *self.treatment.names)
            self.forward = self.treatment.read
        if mode != "eager":
            self.forward = model.capturable_forward()  # type: ignore[operator]
        self.captured: Captured | None = None

    def __call__(self, inputs: Tokens, targets: Tokens, step: int) -> Tensor:
        """Take update ``step`` (from 0) and return the numbers of ``names``, fp64, on the device, without waiting."""
        set_learning_rate(self.optimizer, learning_rate(step, self.config))
        batch_2BT = to_device(np.stack((inputs, targets)), self.device)
        if self.mode != "graphed":
            return self._update(batch_2BT, step)
        if self.captured is None:
            # the step is for hooks, and here are none
            self.captured = Captured(lambda held_2BT: self._update(held_2BT, step=0), batch_2BT)
        return self.captured(batch_2BT)

    def close(self) -> None:
        """Free the graph and the memory in its pool."""
        if self.captured is not None:
            self.captured.close()
            self.captured = None

    def _update(self, batch_2BT: Tensor, step: int) -> Tensor:
        loss = self._backward(*batch_2BT)
        if self.before_clip is not None:
            self.before_clip(self.model, step)
        norm, of_branches = gradient_norms(self.parameters, self.branches)
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.after_update is not None:
            self.after_update(self.model, step)
        treated = self.treatment.report() if self.treatment is not None else []
        return torch.stack([loss, norm, *of_branches.values(), *treated]).detach().double()

    def _backward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Gradients of the mean cross entropy; returns that mean, in nats."""
        micro_batches = self.config.grad_accumulation
        total = torch.zeros((), device=self.device)
        size = len(inputs_BT) // micro_batches
        for begin in range(0, len(inputs_BT), size):
            rows = slice(begin, begin + size)
            with autocast(self.device, self.dtype):
                logits_bTV = self.forward(inputs_BT[rows])
            loss = kernels.cross_entropy(logits_bTV.flatten(0, 1), targets_BT[rows].flatten()) / micro_batches
            whole = loss if self.treatment is None else self.treatment.add_to(loss)
            whole.backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total


class Captured:
    """A function of one tensor: run as it is at first, on a stream of its own, then captured and replayed."""

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self.function = function
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.held = torch.empty_like(example)
        self.uncaptured = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, given: Tensor) -> Tensor:
        """What the function gives for ``given``, which has the shape of the example."""
        self.held.copy_(given)
        if self.uncaptured < UNCAPTURED:
            self.uncaptured += 1
            return self._on_own_stream()
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        self.graph.replay()
        return self.result.clone()

    def close(self) -> None:
        """Free the graph, and the result that lies in its memory."""
        if self.graph is not None:
            self.graph.reset()
            del self.result

    def _on_own_stream(self) -> Tensor:
        # where the capture will be: libraries keep workspaces, and autograd its accumulators, by stream
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(self.held)
        torch.cuda.current_stream().wait_stream(self.stream)
        result.record_stream(torch.cuda.current_stream())
        return result

    def _capture(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # other threads of the process may go on with their own work
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = self.function(self.held)
