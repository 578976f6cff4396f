"""What a training step takes: what can be counted of it beforehand, and peak memory and speed as measured.

``count`` runs one forward pass and times nothing. ``WarmedUp`` needs a process of its own, since the peak of a process
is that of everything it did before.
"""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from harness.config import RunConfig
from harness.errors import HarnessError
from harness.evaluation import autocast
from harness.flops import training_flops_per_token
from harness.metrics.resource import Size
from harness.runtime import configure_cpu
from harness.step import TrainingStep, choose
from harness.training_job import resolve_dtype
from models.protocol import State, capabilities

WINDOWS = 5
WINDOW_S = 1.0
WARM_UP_STEPS = 3
"""The first step allocates the moments of Adam; a GPU compiles and chooses its kernels in the first two. The last is
taken when the measuring begins: it captures the graph, and a process that waited has to find its caches again."""

YARDSTICK_S = 0.1
YARDSTICK_WIDTH = {"cpu": 512, "cuda": 4096}
LEAST_SHARE = 0.85
"""Of the processor time that the threads could have had: .89 to .94 seen in quiet moments, .50 beside a busy loop."""

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")


class BusyError(HarnessError):
    """Something else ran on the same cores, so the speed measured is not this machine's."""


@dataclass(frozen=True)
class Resources:
    """What a training step of one size took.

    tokens_per_s  of each window        peak_bytes  above the process before the model was built
    cpu_share     processor seconds over wall seconds x threads in the windows; below 1 where a step waits
    share         least share of its threads that a matrix product got before, between and after the windows: 1 on an
                  idle machine; 1 on a GPU, where it is not known
    yardstick     operations a second of that product, median: the same for all sizes or they do not compare
    execution     how the updates were taken: ``graphed`` or ``eager``
    began         ISO time (UTC) after the warm-up, before anything of this was timed or read
    """

    tokens_per_s: tuple[float, ...]
    steps_a_window: int
    peak_bytes: int
    cpu_share: float
    share: float
    yardstick: float
    execution: str
    began: str

    @property
    def speed(self) -> float:
        """Tokens a second: the median of the windows."""
        return statistics.median(self.tokens_per_s)

    @property
    def spread(self) -> float:
        """Standard deviation of the windows over their mean."""
        return statistics.stdev(self.tokens_per_s) / statistics.mean(self.tokens_per_s)


def count(model: nn.Module, config: RunConfig, device: str) -> Size:
    """What is known of a training step without taking one. Raises ``FlopsError`` where operations cannot be counted.

    A model without the hook for its state is counted as if it had none: the fit's constant holds it then.
    """
    model = model.to(device)
    tokens_BT = _tokens(config, device)
    launches = _Launches()
    dtype = resolve_dtype(config, device)
    with torch.no_grad(), launches, autocast(tokens_BT.device, dtype):
        model(tokens_BT)
    trained = [p for p in model.parameters() if p.requires_grad]
    fixed = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    # a gradient and two moments, of the parameter's own dtype
    fixed += 3 * sum(p.nbytes for p in trained)
    state_bytes = 0
    if "state" in capabilities(model):
        with torch.no_grad():
            _, state = model(tokens_BT, return_states=True)
        assert isinstance(state, State)
        state_bytes = state.nbytes
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        fixed_bytes=fixed,
        state_bytes=state_bytes,
        saved_bytes=saved_bytes(model, tokens_BT, dtype),
        launches=launches.count,
        flops_per_token=training_flops_per_token(model, 1, config.data.seq_len),
        tokens=_batch_tokens(config, device),
    )


def saved_bytes(model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass ``[B, T]`` for the backward one, the weights apart; logits too."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # a freed address may come back for another tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(tokens_BT.device, dtype):
        model(tokens_BT)
    return sum(kept.values())


class _Launches(TorchDispatchMode):
    """Counts the operations that a program asks of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class RandomStep:
    """An update as every training takes it (``harness.step``), in a graph where it does, on random tokens."""

    def __init__(self, model: nn.Module, config: RunConfig, device: str) -> None:
        model = model.to(device).train()
        self.mode = choose(model, config.train, device).mode
        self.update = TrainingStep(model, config.train, dtype=resolve_dtype(config, device), mode=self.mode)
        length, self.tokens = config.data.seq_len, _batch_tokens(config, device)
        drawn = np.random.default_rng(0).integers(config.data.vocab_size, size=(2, self.tokens // length, length))
        self.inputs, self.targets = drawn.astype(np.uint16)
        self.at = config.train.warmup_steps

    def __call__(self) -> None:
        """Take it, at the full learning rate; on a GPU it may still be running."""
        self.update(self.inputs, self.targets, self.at)


def _batch_tokens(config: RunConfig, device: str) -> int:
    tokens: int = getattr(config.train.batch_tokens, device)
    return tokens


def _tokens(config: RunConfig, device: str) -> Tensor:
    """Random tokens of one micro-batch ``[B, T]``."""
    length = config.data.seq_len
    rows = _batch_tokens(config, device) // config.train.grad_accumulation // length
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.data.vocab_size, (rows, length), generator=generator).to(device)


class WarmedUp:
    """A fresh model that has taken its first steps; ``measure`` sees what further ones take, now or much later.

    Make one, in a process of its own, and measure once. Meanwhile it holds weights and moments: what a GPU has free is
    given back, so that others find room. Its peak is counted from before the model is built, and nobody is told of it
    before ``measure``.
    """

    def __init__(self, build: Callable[[], nn.Module], config: RunConfig, device: str) -> None:
        self.device, self.threads = device, config.train.threads
        if device == "cpu":
            configure_cpu(self.threads)
        kernels.backends.describe(device)
        _yardstick(device, self.threads)  # libraries load and allocate here, not in what is measured
        self.memory = _Memory(device)
        self.step = RandomStep(build(), config, device)
        for _ in range(WARM_UP_STEPS - 1):
            self.step()
        _synchronize(device)
        if device == "cuda":
            torch.cuda.empty_cache()

    def measure(self) -> Resources:
        """Take the last step of the warm-up, then the windows.

        Raises ``BusyError`` when the threads did not get ``LEAST_SHARE`` of their cores.
        """
        device, threads, step = self.device, self.threads, self.step
        began = datetime.now(UTC).isoformat(timespec="microseconds")
        step()
        steps = max(1, math.ceil(WINDOW_S / _timed(step, 1, device)[0]))
        rulers, windows = [_yardstick(device, threads)], []
        for _ in range(WINDOWS):
            windows.append(_timed(step, steps, device))
            rulers.append(_yardstick(device, threads))
        share = min(share for share, _ in rulers) if device == "cpu" else 1.0
        if share < LEAST_SHARE:
            raise BusyError(
                f"a matrix product on {threads} threads got {share:.0%} of their processor time, and {LEAST_SHARE:.0%} "
                f"is the least with which a speed is a speed\n  next  stop what else runs here, and run this check "
                f"alone: pytest suites/graduation -k resource -n 0"
            )
        return Resources(
            tokens_per_s=tuple(step.tokens * steps / wall for wall, _ in windows),
            steps_a_window=steps,
            peak_bytes=self.memory.peak_above_start(),
            cpu_share=sum(cpu for _, cpu in windows) / sum(wall for wall, _ in windows) / threads,
            share=share,
            yardstick=statistics.median(rate for _, rate in rulers),
            execution=step.mode,
            began=began,
        )


def _timed(step: RandomStep, steps: int, device: str) -> tuple[float, float]:
    """Wall and processor seconds of so many steps, from an idle device to an idle device."""
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _yardstick(device: str, threads: int) -> tuple[float, float]:
    """``(share, rate)``: processor time over what the threads could have had, and operations a second, of products."""
    width = YARDSTICK_WIDTH[device]
    a = torch.ones(width, width, device=device)
    a @ a
    _synchronize(device)
    products, wall, cpu = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - wall) < YARDSTICK_S:
        a @ a
        _synchronize(device)
        products += 1
    return (time.process_time() - cpu) / (taken * threads), products * 2 * width**3 / taken


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class _Memory:
    """Peak memory since now: of torch's allocator on a GPU, of the process on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.start = _resident("VmRSS")

    def peak_above_start(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else _resident("VmHWM")
        return peak - self.start


def available_bytes() -> int:
    """Bytes of the host's memory that a new process could have without others giving up theirs. Linux."""
    rows = _MEMINFO.read_text(encoding="utf8").splitlines()
    return int(dict(row.split(":", 1) for row in rows)["MemAvailable"].split()[0]) * 1024


def _resident(line: str) -> int:
    """Bytes of memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far.

    Not ``ru_maxrss`` where there is a choice: on Linux a new process takes over the peak of the one that started it.
    """
    if _STATUS.exists():
        fields = dict(row.split(":", 1) for row in _STATUS.read_text(encoding="utf8").splitlines())
        return int(fields[line].split()[0]) * 1024
    # macOS counts bytes. The peak stands for both: importing is no larger than what follows.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
