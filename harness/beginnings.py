"""Beginnings: what a training leaves of the moment at which it begins to decay, so that a longer one begins there.

Until its learning rate decays, a training does not depend on ``train.steps``: two that differ in nothing else are one.

    before_decay/step-*/  in the directory of the shorter one: a resumable checkpoint (``harness.checkpoint``) of the
                          moment before anything was done at the step after which it decays
    beginning.json        in the directory of the longer one: which run it began as, and up to which step
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.checkpoint import TRAINING, write_synced
from harness.config import RunConfig, TrainConfig, config_sha256
from harness.errors import HarnessError
from harness.events import Monitor
from harness.hashing import canonical_json
from harness.optim import learning_rate
from harness.runlog import read_header, rows_before

FILE, DIRECTORY = "beginning.json", "before_decay"


class BeginningError(HarnessError):
    """A training cannot begin as another one. The message says what keeps it from that."""


@dataclass(frozen=True)
class Origin:
    """How a training began: as the run of that key (the name of its directory), of ``steps``, up to ``step``."""

    run: str
    steps: int
    step: int

    def write(self, directory: Path) -> None:
        """Put it beside the log of the training in a directory."""
        write_synced(directory / FILE, canonical_json(asdict(self)).encode())


def read_origin(directory: Path) -> Origin | None:
    """As which run the training in a directory began; None for one that was trained from its first step."""
    path = directory / FILE
    return Origin(**json.loads(path.read_text(encoding="utf8"))) if path.is_file() else None


def decay_start(config: TrainConfig) -> int:
    """Updates after which the learning rate falls: so many are those of every longer training, too."""
    return config.steps - config.decay_steps


def state_path(directory: Path, step: int) -> Path:
    """Where the training in a directory keeps its beginning."""
    return directory / DIRECTORY / f"step-{step:06d}"


def kept_step(directory: Path) -> int | None:
    """The step up to which others may begin as the training in a directory; None where it kept no beginning."""
    steps = [int(path.name.removeprefix("step-")) for path in directory.glob(f"{DIRECTORY}/step-??????")]
    assert len(steps) <= 1, "a training decays once"
    return steps[0] if steps else None


def monitors_agree(directory: Path, monitors: Sequence[Monitor]) -> bool:
    """Whether fresh monitors say and remember of the beginning in a directory what those of that run did.

    They do not where limits were changed since: then a training from its first step has another log.
    """
    step = kept_step(directory)
    assert step is not None, "it kept a beginning"
    training = json.loads((state_path(directory, step) / TRAINING).read_text(encoding="utf8"))
    rows = rows_before(directory, training["log"])
    said = [
        asdict(event) | {"kind": "event", "severity": event.kind}
        for row in rows
        if row["kind"] not in ("header", "event")
        for monitor in monitors
        for event in monitor.observe(row)
    ]
    remembered = [monitor.state_dict() for monitor in monitors]
    # as text, in which NaN equals itself and a tuple is a list
    return said == [row for row in rows if row["kind"] == "event"] and (
        json.dumps(remembered, sort_keys=True) == json.dumps(training["monitors"], sort_keys=True)
    )


def require_longer(config: RunConfig, shorter: RunConfig) -> None:
    """Refuse two configurations that differ in anything but ``train.steps``, or not in that. ``BeginningError``."""
    own, other = (part.model_dump(mode="json") for part in (config, shorter))
    differing = sorted(
        path for path in {**_flat(own), **_flat(other)} if _flat(own).get(path) != _flat(other).get(path)
    )
    if differing != ["train.steps"] or shorter.train.steps >= config.train.steps:
        found = ", ".join(f"{path} {_flat(other).get(path)} there, {_flat(own).get(path)} here" for path in differing)
        raise BeginningError(
            f"a training of {config.train.steps} steps cannot begin as one of {shorter.train.steps}: they must differ "
            f"in train.steps alone, and it must be the longer one; found: {found or 'no difference'}"
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


@dataclass(frozen=True)
class Beginning:
    """A state that was found fit to begin from: its checkpoint, and the hash of the configuration that made it."""

    origin: Origin
    state: Path
    config_sha256: str


def find_beginning(directory: Path, config: RunConfig, header: Mapping[str, Any]) -> Beginning:
    """The beginning that the run in ``directory`` kept, for a training with ``config`` and the ``header`` of a log.

    Everything that identifies the two must be equal but ``train.steps``, and so must be the learning rates of all
    updates up to the step of the beginning. Raises ``BeginningError``; ``RunLogError`` where there is no log.
    """
    step, theirs = kept_step(directory), read_header(directory)
    if step is None:
        raise BeginningError(f"{directory}: this run kept no beginning; let the longer training start afresh")
    shorter = config.model_copy(update={"train": config.train.model_copy(update={"steps": theirs.get("steps", 0)})})
    expected = {**header, "steps": shorter.train.steps, "config_sha256": config_sha256(shorter)}
    wrong = [
        f"{key} {theirs.get(key)} there, {expected.get(key)} wanted"
        for key in sorted({*theirs, *expected})
        if theirs.get(key) != expected.get(key)
    ]
    if wrong or not 0 < shorter.train.steps < config.train.steps:
        raise BeginningError(
            f"{directory}: not the beginning of a training of {config.train.steps} steps\n"
            f"  what     {'; '.join(wrong) or f'it has {shorter.train.steps} steps itself'}\n"
            f"  allowed  fewer steps, and nothing else that differs\n"
            f"  next     let the longer training start afresh"
        )
    if not 0 < step <= min(decay_start(shorter.train), decay_start(config.train)) or any(
        learning_rate(update, shorter.train) != learning_rate(update, config.train) for update in range(step)
    ):
        raise BeginningError(
            f"{directory}: at step {step}, of which it kept the state, the learning rates were no longer those of a "
            f"training of {config.train.steps} steps; let the longer training start afresh"
        )
    origin = Origin(directory.name, shorter.train.steps, step)
    return Beginning(origin, state_path(directory, step), expected["config_sha256"])
