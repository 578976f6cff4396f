"""Progress of long work: a heartbeat that one process writes and another reads, so that a session has one view of it.

Tests run with their output captured, and workers of pytest-xdist have no terminal. What trains therefore writes a small
file now and then; who holds the terminal reads them all (harness/plugin/pace.py).
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

HEARTBEATS = "GROUNDTHINK_HEARTBEATS"
"""The environment variable that names the directory of a session's heartbeats."""

INTERVAL_S = 1.0


class Progress(Protocol):
    """Who wants to know how a training goes."""

    def begin(self, total: int, done: int) -> None:
        """Work of ``total`` steps starts, ``done`` of which an earlier process did."""
        ...

    def update(self, step: int, note: str) -> None:
        """``step`` steps are done."""
        ...

    def end(self) -> None:
        """No more steps come, whatever the reason."""
        ...


@dataclass(frozen=True)
class Heartbeat:
    """Where a training stands. first: steps that an earlier process did; began, at: seconds of ``time.time``."""

    label: str
    total: int
    first: int
    step: int
    note: str
    began: float
    at: float
    ended: bool = False

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None before the first step."""
        done = self.step - self.first
        return (self.at - self.began) / done * (self.total - self.step) if done > 0 else None


class HeartbeatFile:
    """Writes the heartbeat of one training, at most once a second."""

    def __init__(self, directory: Path, label: str) -> None:
        self._path = directory / f"heartbeat-{sha256(label.encode()).hexdigest()[:16]}.json"
        self._beat = Heartbeat(label, 0, 0, 0, "", 0.0, 0.0)

    def begin(self, total: int, done: int) -> None:
        """Start the clock."""
        now = time.time()
        self._write(Heartbeat(self._beat.label, total, done, done, "", now, now))

    def update(self, step: int, note: str) -> None:
        """Say where the work stands, if it is time to."""
        now = time.time()
        if now - self._beat.at >= INTERVAL_S:
            beat = self._beat
            self._write(Heartbeat(beat.label, beat.total, beat.first, step, note, beat.began, now))

    def end(self) -> None:
        """Say that it is over."""
        beat = self._beat
        self._write(Heartbeat(beat.label, beat.total, beat.first, beat.step, beat.note, beat.began, time.time(), True))

    def _write(self, beat: Heartbeat) -> None:
        self._beat = beat
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(beat)), encoding="utf8")
        temporary.replace(self._path)


def make_progress(label: str) -> Progress | None:
    """A heartbeat for the session that this process belongs to; None outside of one."""
    directory = os.environ.get(HEARTBEATS)
    return HeartbeatFile(Path(directory), label) if directory else None


def heartbeats(directory: Path) -> list[Heartbeat]:
    """The trainings of a session so far, in the order of their labels."""
    beats = [Heartbeat(**json.loads(path.read_text(encoding="utf8"))) for path in directory.glob("heartbeat-*.json")]
    return sorted(beats, key=lambda beat: beat.label)
