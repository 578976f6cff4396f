"""Does a training that was killed go on as if nothing had happened? Comparisons of finished trainings, bit by bit."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.checkpoint import MODEL, OPTIMIZER, TRAINING, load_weights, save_weights
from harness.runlog import read_rows
from harness.training_files import checkpoint_directory

NOISE_FACTOR = 3.0
"""A resumed training may be this many times as far from the straight one as reruns of the straight one are."""

# of the loop's saved state, what names the clock and not the training
_CLOCK = frozenset({"wall_s"})


@dataclass(frozen=True)
class Differences:
    """What two finished trainings do not have in common, bit by bit; each part is empty when it is equal.

    weights    tensors of the model
    optimizer  moments and counts, ``moment/parameter``
    random     states of the random generators
    loop       step, data cursor, identity, position in the log, memory of the monitors
    log        steps whose rows differ; -1 for rows before the first step
    loss       largest difference of the losses of one step, nats; infinite when a step is logged in one only
    """

    weights: tuple[str, ...]
    optimizer: tuple[str, ...]
    random: tuple[str, ...]
    loop: tuple[str, ...]
    log: tuple[int, ...]
    loss: float

    @property
    def is_none(self) -> bool:
        """Whether the two are equal in every bit."""
        return not any(self.parts.values())

    @property
    def parts(self) -> dict[str, tuple[str, ...] | tuple[int, ...]]:
        """What differs, by the part it belongs to."""
        return {"weights": self.weights, "optimizer": self.optimizer, "random": self.random, "loop": self.loop,
                "log": self.log}  # fmt: skip


def compare(directory: Path, reference: Path, step: int) -> Differences:
    """What of two trainings that finished ``step`` updates differs, from their directories."""
    one, other = checkpoint_directory(directory, step), checkpoint_directory(reference, step)
    optimizer = _unequal(one / OPTIMIZER, other / OPTIMIZER)
    loops = [json.loads((path / TRAINING).read_text(encoding="utf8")) for path in (one, other)]
    keys = sorted((loops[0].keys() | loops[1].keys()) - _CLOCK)
    rows = [read_rows(path) for path in (directory, reference)]
    return Differences(
        weights=_unequal(one / MODEL, other / MODEL),
        optimizer=tuple(name for name in optimizer if not name.startswith("random.")),
        random=tuple(name for name in optimizer if name.startswith("random.")),
        loop=tuple(key for key in keys if loops[0].get(key) != loops[1].get(key)),
        log=_unequal_rows(*rows),
        loss=_loss_difference(*rows),
    )


def _unequal(one: Path, other: Path) -> tuple[str, ...]:
    tensors, expected = load_file(one), load_file(other)
    return tuple(name for name in sorted({*tensors, *expected}) if not _equal(tensors.get(name), expected.get(name)))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    # bits, so that NaN equals itself and -0 is not 0
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


def _unequal_rows(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> tuple[int, ...]:
    # as text, in which NaN equals itself
    texts = [[json.dumps(row, sort_keys=True) for row in part] for part in (rows, expected)]
    length = max(map(len, texts))
    padded = [[*part, *[""] * (length - len(part))] for part in texts]
    longer = rows if len(rows) == length else expected
    found = [int(longer[i].get("step", -1)) for i in range(length) if padded[0][i] != padded[1][i]]
    return tuple(dict.fromkeys(found))


def _loss_difference(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> float:
    one, other = ({row["step"]: row["loss"] for row in part if row["kind"] == "step"} for part in (rows, expected))
    if one.keys() != other.keys():
        return math.inf
    return float(max(abs(one[step] - other[step]) for step in one))


@dataclass(frozen=True)
class ResumeProof:
    """A training of ``steps`` updates in one go, against one that was killed and went on in a new process.

    killed_after   updates done when SIGKILL came; resumed_from: those done when the new process took up
    differences    between the two, at the end
    rerun_loss     largest difference of a step's loss between runs in one go, nats; 0 where the device repeats itself,
                   None where no rerun was needed: nothing differed
    """

    steps: int
    killed_after: int
    resumed_from: int
    differences: Differences
    rerun_loss: float | None

    @property
    def really_resumed(self) -> bool:
        """Whether the second process took up work of the first one: starting afresh would give equal bits as well."""
        return 0 < self.resumed_from <= self.killed_after < self.steps

    @property
    def within_noise(self) -> bool:
        """Whether the losses differ no more than 3 times as much as reruns on a device that does not repeat itself."""
        return self.rerun_loss is not None and 0 < self.differences.loss <= NOISE_FACTOR * self.rerun_loss

    def level(self, *, round_trip: bool) -> int:
        """2 for equal bits, 1 for losses within the noise of reruns, else 0; 0 where weights do not survive a file."""
        if not (round_trip and self.really_resumed):
            return 0
        return 2 if self.differences.is_none else int(self.within_noise)


@dataclass(frozen=True)
class RoundTrip:
    """Weights written to a file and read into another model: what came back otherwise."""

    tensors: tuple[str, ...]
    logits_differ: bool

    @property
    def is_exact(self) -> bool:
        """Whether every tensor and every logit is equal in every bit."""
        return not self.tensors and not self.logits_differ


def round_trip(model: nn.Module, other: nn.Module, tokens_BT: Tensor, directory: Path) -> RoundTrip:
    """Write the weights of ``model`` to ``directory``, read them into ``other`` and compare, logits included.

    ``other`` has the same shapes and is spoilt first: every tensor is moved, so that one which the file lacks shows.
    """
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.copy_(~tensor if tensor.dtype is torch.bool else tensor + 1)
    save_weights(model, directory)
    load_weights(directory, other)
    written, read = model.state_dict(), other.state_dict()
    names = sorted({*written, *read})
    differing = tuple(name for name in names if not _equal(written.get(name), read.get(name)))
    model.eval()
    other.eval()
    with torch.inference_mode():
        return RoundTrip(differing, not _equal(model(tokens_BT), other(tokens_BT)))
