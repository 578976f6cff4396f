"""What every stopping criterion has: limits from thresholds.toml and a memory that survives a resume."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from harness.errors import HarnessError
from harness.events import Event
from harness.thresholds import Bands


@dataclass(frozen=True)
class StopLimits:
    """What each criterion tolerates, from thresholds.toml [STOP.*].

    overfit_alert, overfit_stop  rise of validation loss over its best, share of the best
    lr_drop_gain                 least gain of validation loss that two learning-rate drops must bring, standard errors
    oscillation                  peak to trough of the detrended training loss, nats
    spike_mads, spike_nats       distance of a spike from the running median: in scaled MADs, and never less, in nats
    spike_ratio                  loss over the running median that must be recovered from
    write_sensitivity            least rho of a branch's writes
    dead_channels                share of a branch's channels that never write
    info_share                   least share of information from a branch, judged with its ablation
    gradient_ratio               band of the gradient ratio of the branches
    """

    overfit_alert: float
    overfit_stop: float
    lr_drop_gain: float
    oscillation: float
    spike_mads: float
    spike_nats: float
    spike_ratio: float
    write_sensitivity: float
    dead_channels: float
    info_share: float
    gradient_ratio: tuple[float, float]

    @classmethod
    def of(cls, bands: Mapping[str, Bands]) -> Self:
        """Read the limits from the table ``thresholds.of("STOP")``; ``overfit`` gives ALERT (pass) and STOP (warn)."""
        fields = dict.fromkeys("overfit" if name.startswith("overfit") else name for name in cls.__dataclass_fields__)
        missing = [name for name in fields if name not in bands]
        if missing:
            raise HarnessError(
                f"thresholds.toml lacks {', '.join(f'[STOP.{name}]' for name in missing)}; the stopping criteria need "
                f"{', '.join(fields)}: add the limits with their source"
            )
        lower = {name: bands[name].warn_band[0] for name in ("lr_drop_gain", "write_sensitivity", "info_share")}
        upper = {
            name: bands[name].warn_band[1]
            for name in ("oscillation", "spike_mads", "spike_nats", "spike_ratio", "dead_channels")
        }
        return cls(
            overfit_alert=bands["overfit"].pass_band[1],
            overfit_stop=bands["overfit"].warn_band[1],
            gradient_ratio=bands["gradient_ratio"].warn_band,
            **lower,
            **upper,
        )


@dataclass
class Memory:
    """What a monitor remembers: JSON values only. ``fed`` counts the rows it could use."""

    fed: int = 0


M = TypeVar("M", bound=Memory)


class Rule(ABC, Generic[M]):
    """A monitor whose memory is one dataclass, so that it can be saved and taken up again."""

    criterion: ClassVar[str]
    memory_type: type[M]

    def __init__(self, limits: StopLimits) -> None:
        self.limits = limits
        self.memory: M = self.memory_type()

    @abstractmethod
    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Events that this row brings about; most rows bring none."""

    def state_dict(self) -> dict[str, Any]:
        """Memory as JSON values."""
        return asdict(self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave. ``HarnessError`` when it is another monitor's."""
        known = set(asdict(self.memory))
        if set(state) != known:
            raise HarnessError(
                f"the saved state of monitor {self.criterion} has {sorted(state)}, not {sorted(known)}: "
                "the checkpoint is from another version; start the training afresh"
            )
        self.memory = self.memory_type(**copy.deepcopy(dict(state)))

    def event(self, kind: Literal["STOP", "ALERT"], row: Mapping[str, Any], evidence: str) -> Event:
        """Make an event of this criterion at the step of a row."""
        return Event(kind, self.criterion, int(row["step"]), evidence)
