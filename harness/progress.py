"""Progress of long work on the terminal: a bar for a person, a line now and then for a log, nothing under xdist."""

import os
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


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


class BarProgress:
    """A bar that redraws itself on a terminal."""

    def __init__(self, label: str, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
        self._task = self._bar.add_task(label, start=False, note="")

    def begin(self, total: int, done: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()
        self._bar.start_task(self._task)

    def update(self, step: int, note: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, note=note)

    def end(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class LineProgress:
    """A plain line at most every ``interval_s`` seconds, for logs and pipes."""

    def __init__(self, label: str, console: Console, interval_s: float) -> None:
        self._label, self._console, self._interval_s = label, console, interval_s
        self._total = 0
        self._first = 0
        self._started = self._shown = 0.0

    def begin(self, total: int, done: int) -> None:
        """Start the clock."""
        self._total, self._first = total, done
        self._started = self._shown = time.monotonic()

    def update(self, step: int, note: str) -> None:
        """Say where the work stands, if it is time to."""
        now = time.monotonic()
        if now - self._shown < self._interval_s or step == self._first:
            return
        self._shown = now
        remaining_s = (now - self._started) / (step - self._first) * (self._total - step)
        self._console.print(
            f"{self._label}: step {step} of {self._total}, {note}, about {remaining_s:.0f} s left",
            markup=False,
            highlight=False,
        )

    def end(self) -> None:
        """Nothing to take away."""


def make_progress(label: str, interval_s: float = 15.0) -> Progress | None:
    """What suits the place: a bar on a terminal, lines elsewhere, None in an xdist worker (its output is protocol)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    console = Console(stderr=True)
    return BarProgress(label, console) if console.is_terminal else LineProgress(label, console, interval_s)
