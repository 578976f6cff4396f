"""Where a training keeps its weights, its resumable state and how it ended."""

import json
from pathlib import Path

from harness.training_job import TrainOutcome

OUTCOME, CHECKPOINTS, RESUME = "outcome.json", "checkpoints", "resume"


def checkpoint_directory(directory: Path, step: int) -> Path:
    """Where the weights after ``step`` updates are kept."""
    return directory / CHECKPOINTS / f"step-{step:06d}"


def checkpoint_steps(directory: Path) -> list[int]:
    """The steps whose weights the training in a directory has kept, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob(f"{CHECKPOINTS}/step-??????"))


def read_outcome(directory: Path) -> TrainOutcome | None:
    """How the training in a directory ended; None when it has not."""
    path = directory / OUTCOME
    return TrainOutcome(**json.loads(path.read_text(encoding="utf8"))) if path.is_file() else None
