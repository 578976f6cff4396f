"""What a training is given, and how it ended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from harness.config import RunConfig
from harness.data import TokenDataset, Tokens
from harness.errors import HarnessError
from harness.events import Monitor
from harness.progress import Progress


class TrainError(HarnessError):
    """The training cannot be run as asked. The message says why."""


class TrainingPatch:
    """What a subject changes in its own training: nothing. A mutant broken in training overrides a hook.

    ``name`` enters the store's key. ``step`` counts updates from 0.
    """

    name = "none"

    def batch(self, inputs: Tokens, targets: Tokens, *, seed: int, step: int) -> tuple[Tokens, Tokens]:
        """The batch ``[B, T]`` that the model is to see instead. Must be a function of its arguments."""
        return inputs, targets

    def gradients(self, model: nn.Module, step: int) -> None:
        """Change ``parameter.grad`` before it is measured and clipped."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change the weights after the update."""

    @property
    def looks_inside(self) -> bool:
        """Whether it changes gradients or weights, and not only batches."""
        return any(
            getattr(type(self), hook) is not getattr(TrainingPatch, hook) for hook in ("gradients", "after_step")
        )


NO_PATCH = TrainingPatch()

Probe = Callable[[nn.Module], Mapping[str, Any]]
"""A look inside the model, logged as a ``probe`` row (``harness.probe_row``): in eval mode, without a graph."""


@dataclass(frozen=True)
class TrainJob:
    """One training: what ``train`` is given.

    begins_as        directory of a shorter one that has ended and kept its beginning (``harness.beginnings``)
    keeps_beginning  whether it leaves one itself
    """

    model: nn.Module
    dataset: TokenDataset
    config: RunConfig
    directory: Path
    seed: int
    device: str
    patch: TrainingPatch = NO_PATCH
    monitors: Sequence[Monitor] = ()
    probe: Probe | None = None
    progress: Progress | None = None
    begins_as: Path | None = None
    keeps_beginning: bool = False


@dataclass(frozen=True)
class TrainOutcome:
    """How a training ended.

    finished  all steps done       diverged  loss or gradient norm was not finite       stopped  a monitor's STOP
    steps     updates done; for a diverged run those before the one that showed it
    wall_s    seconds of all processes that worked on it, on a beginning that it shares with another training, too
    """

    status: Literal["finished", "diverged", "stopped"]
    steps: int
    reason: str
    wall_s: float


def resolve_dtype(config: RunConfig, device: str) -> torch.dtype:
    """The dtype of the matrix products on a device."""
    auto = "bfloat16" if device == "cuda" else "float32"
    return (
        torch.bfloat16
        if (auto if config.train.dtype == "auto" else config.train.dtype) == "bfloat16"
        else torch.float32
    )
