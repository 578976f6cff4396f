"""Whether trainings share a GPU: the choice, from what was measured, and the file beside a run's log that tells of it.

Kept apart from the log: a training that ran beside others has the same log as one that ran alone, byte for byte.
No torch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from harness.hashing import canonical_json

FILE = "execution.json"

Mode = Literal["alone", "together"]

LEAST_GAIN = 1.05
"""Updates a second of trainings together over those of the same trainings one after another, to run them together."""


@dataclass(frozen=True)
class Execution:
    """How a training ran on its GPU, in the process that ended it.

    at_once      trainings that shared the GPU, this one included: 1 for ``alone``
    alone_ms     milliseconds of one of its updates with the GPU to itself; None where it was too short to tell
    together_ms  milliseconds of one update of any of them, all at once: alone, three of them take three times alone_ms
                 for an update each, together three times together_ms. None where it was not measured
    """

    mode: Mode
    reason: str
    at_once: int
    alone_ms: float | None
    together_ms: float | None
    gpu: str

    def write(self, directory: Path) -> None:
        """Put it beside the log of the training in a directory."""
        (directory / FILE).write_text(canonical_json(asdict(self)), encoding="utf8")


def read_execution(directory: Path) -> Execution | None:
    """How the training in a directory ran; None where nothing was measured: on a CPU, or with ``train`` itself."""
    path = directory / FILE
    return Execution(**json.loads(path.read_text(encoding="utf8"))) if path.is_file() else None


def choose(alone_ms: Sequence[float], together_ms: float | None) -> tuple[Mode, str]:
    """How trainings go on, and why: from an update of each alone, and of any of them at once."""
    if together_ms is None:
        return "alone", "they were too short to measure them together"
    gain = sum(alone_ms) / len(alone_ms) / together_ms
    found = f"{len(alone_ms)} at once do {gain:.2f} times the updates of one after another"
    if gain >= LEAST_GAIN:
        return "together", found
    return "alone", f"{found}, and less than {LEAST_GAIN:.2f} is not worth it"
