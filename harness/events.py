"""What a monitor says while a training runs, and the shape of a monitor. No torch: reports read events too."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Event:
    """A stopping criterion that was met.

    kind       STOP: the run should not go on; ALERT: look at it
    criterion  name of the rule, as in thresholds.toml
    step       updates done when it was met
    evidence   the numbers behind it, in one line
    """

    kind: Literal["STOP", "ALERT"]
    criterion: str
    step: int
    evidence: str


class Monitor(Protocol):
    """An online rule over the rows of ``metrics.jsonl``.

    The training loop hands over every row in the order in which it is logged, and saves the monitor's state with
    each checkpoint, so that a resumed training raises the same events as one that was never interrupted.
    """

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """The events that this row brings about; most rows bring none."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the monitor remembers, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        ...
