"""One view of a session while it runs: how many checks are done, which training runs, and how long it will take."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.graduation.plan import Plan
from harness.progress import Heartbeat, heartbeats
from harness.wording import format_duration

EVERY_S = 20.0
TRUST_S = 60.0
"""The plan's own pace counts as much as so many seconds of the session: its first checks must not set the forecast."""


class Pace:
    """Writes a line now and then to the terminal, past pytest's capture, from a thread of the controller.

    done  tests that have ended, and all of them
    plan  what has to be trained and measured; without one, or where its cost is unknown, no time is promised
    """

    def __init__(self, directory: Path, done: Callable[[], tuple[int, int]], plan: Plan | None):
        self._directory, self._done, self._plan = directory, done, plan
        self._began = time.time()
        self._stop = threading.Event()
        # duplicated while nothing is captured, so that the lines reach the terminal during a test
        self._terminal = os.fdopen(os.dup(2), "w", buffering=1)
        self._thread = threading.Thread(target=self._run, name="groundthink-pace", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._terminal.close()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self._terminal.write(f"\n{self.line(time.time())}\n")

    def line(self, now: float) -> str:
        """What to say at a time: ``12 of 40 checks; GF-MH 3.5M, seed 1: step 350 of 1000, loss 6.1; 18 min left``."""
        done, planned = self._done()
        beats = heartbeats(self._directory)
        parts = [f"groundthink: {done} of {planned} tests", *(_training(beat) for beat in beats if not beat.ended)]
        left = self._left(now - self._began, done / planned, beats)
        return "; ".join([*parts, f"about {format_duration(left)} left"] if left is not None else parts)

    def _left(self, elapsed: float, share_of_tests: float, beats: Sequence[Heartbeat]) -> float | None:
        """Seconds: the work that is left by the plan, at the pace at which the session did its work so far."""
        if self._plan is None or self._plan.seconds is None:
            return None
        done = self._plan.measuring_seconds * share_of_tests
        left = self._plan.measuring_seconds - done
        by_label = {beat.label: beat for beat in beats}
        for training in self._plan.trainings:
            cost, beat = training.seconds or 0.0, by_label.get(training.label)
            if beat is None:
                left += cost
            else:
                last = beat.total if beat.ended else beat.step
                own = cost / (beat.total - training.shared)
                done += own * (last - beat.first)
                left += own * (beat.total - last)
        # never less than what the running trainings need by their own pace
        running = max((beat.seconds_left or 0.0 for beat in beats if not beat.ended), default=0.0)
        return max(left * (elapsed + TRUST_S) / (done + TRUST_S), running)


def _training(beat: Heartbeat) -> str:
    left = beat.seconds_left
    pace = f" ({format_duration(left)})" if left is not None else ""
    return ", ".join(part for part in (f"{beat.label}: step {beat.step} of {beat.total}{pace}", beat.note) if part)
