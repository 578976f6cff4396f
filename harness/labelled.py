"""Examples of a task with a label where something is asked and nowhere else, and how they are learned. No torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.config import TrainConfig
from harness.errors import HarnessError

IGNORED = -100
"""The label of a position where nothing is asked."""

LARGEST_VOCABULARY = 1 << 16
"""Inputs are uint16."""


LEARNED_BY = (
    "kernels",
    "models",
    "harness.config",
    "harness.data",
    "harness.evaluation",
    "harness.labelled",
    "harness.labelled_step",
    "harness.labelled_training",
    "harness.metrics.clustered",
    "harness.metrics.gradients",
    "harness.metrics.intervals",
    "harness.metrics.trend",
    "harness.optim",
    "harness.remedies",
    "harness.runtime",
    "harness.step",
    "harness.trace",
)
"""What of the source decides how such examples are learned: a part of the key of every training on them."""


class TaskError(HarnessError):
    """A task cannot be made as asked. The message names the parameter, and what it may be."""


@dataclass(frozen=True)
class Examples:
    """``n`` examples of one task, all of one length.

    inputs        ``[n, L]`` uint16, what the model reads
    labels        ``[n, L]`` int32, what it must predict once it has read that position, else ``IGNORED``
    vocab_size    of inputs and labels together
    chance        accuracy of a uniform guess among the tokens that can be an answer
    turn_starts   columns where a turn begins, ascending from 0, the same in all rows: where a state may be reset
    stale_values  ``[n, L]`` int32, where the answer has changed: what it was before, else ``IGNORED``. Without columns
                  for a task whose answers never change
    """

    inputs: NDArray[np.uint16]
    labels: NDArray[np.int32]
    vocab_size: int
    chance: float
    turn_starts: tuple[int, ...] = (0,)
    stale_values: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))

    def __post_init__(self) -> None:
        assert self.inputs.dtype == np.uint16
        assert self.labels.dtype == np.int32
        assert self.inputs.ndim == 2
        assert self.inputs.shape == self.labels.shape
        assert 0 < self.chance < 1
        assert not self.stale_values.size or self.stale_values.shape == self.labels.shape

    def __len__(self) -> int:
        """Examples."""
        return len(self.inputs)

    @property
    def length(self) -> int:
        """Tokens of an example."""
        return int(self.inputs.shape[1])

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Where there is a label, ``[n, L]``."""
        found: NDArray[np.bool_] = self.labels != IGNORED
        return found

    def rows(self, index: slice | NDArray[np.int64]) -> "Examples":
        """Some of the examples."""
        stale = self.stale_values[index] if self.stale_values.size else self.stale_values
        return Examples(
            self.inputs[index], self.labels[index], self.vocab_size, self.chance, self.turn_starts, stale
        )  # fmt: skip

    def batches(self, size: int) -> Iterator["Examples"]:
        """All examples in order, ``size`` at a time; the last batch may be smaller."""
        return (self.rows(slice(begin, begin + size)) for begin in range(0, len(self), size))


@dataclass(frozen=True)
class LabelledConfig:
    """How a model learns a labelled task.

    epochs, batch_size  passes over the examples; rows of a batch, all of one set
    lr, schedule        ``cosine`` falls to 0 at the last update, ``constant`` stays
    warmup_steps        updates over which the rate rises first
    stop_at             mean accuracy over the development sets at which training ends before its time; 1 or less
    eps and the rest are those of ``harness.config.TrainConfig``; no branch has a learning rate of its own
    dtype               of matrix products; auto is float32 on CPU and bfloat16 autocast on CUDA
    """

    epochs: int = 32
    batch_size: int = 256
    lr: float = 3e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    stop_at: float | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise TaskError(f"LabelledConfig: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.lr < math.inf:
            raise TaskError(f"LabelledConfig: lr is {self.lr}; it must be a number above 0")
        if self.schedule not in ("cosine", "constant"):
            raise TaskError(f"LabelledConfig: schedule is {self.schedule!r}; it must be cosine or constant")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise TaskError(f"LabelledConfig: dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")

    def optimizer_config(self, steps: int) -> TrainConfig:
        """The same for AdamW."""
        return TrainConfig(
            steps=steps, lr=self.lr, weight_decay=self.weight_decay, clip_norm=self.clip_norm, betas=self.betas,
            mamba_lr_mult=1.0, warmup_steps=0, decay_fraction=0.0,
        )  # fmt: skip

    def learning_rate(self, step: int, steps: int) -> float:
        """Of update ``step`` (from 0) of ``steps``; a cosine from ``lr`` at the first to 0 after the last."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * step / steps)) / 2


@dataclass(frozen=True)
class LabelledOutcome:
    """How a training on a labelled task went.

    status          finished all epochs, stopped at ``stop_at`` on the development sets, or diverged: a loss or a weight
                    that is not finite at the end of an epoch; the weights then mean nothing
    losses          mean nats a label of each epoch, before each update
    dev_accuracies  mean over the development sets after each epoch; empty without any
    execution       eager, or graphed: how full batches were learned
    """

    status: Literal["finished", "stopped", "diverged"]
    steps: int
    wall_s: float
    losses: tuple[float, ...]
    dev_accuracies: tuple[float, ...]
    execution: Literal["eager", "graphed"]
