"""The evidence table, read from evidence.toml: what each scale demands, its hard gates, and the rungs of the scores."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.checks import SCALES, Checks, Scale
from harness.errors import HarnessError, did_you_mean
from harness.records import Status
from harness.thresholds import Thresholds, explain_validation

EVIDENCE_PATH = Path(__file__).with_name("evidence.toml")

Category = Literal["stability", "canary", "scaling", "resource"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
MAX_SCORE = 3
SMOKE_SCALE = SCALES["tiny"]
"""The only scale at which the embedded corpus is evidence enough."""


class EvidenceError(HarnessError):
    """evidence.toml is malformed, or names a check, a metric or a scale that does not exist."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScaleRow(_Row):
    """What one scale demands.

    next     the scale that it may go to; empty for the largest
    seeds    of every training whose claim is about training
    cpu_ref  whether a run without a GPU may end in a verdict, of scope cpu_ref
    demands  ids of the checks that must exist, in the order of the table
    """

    next: Scale | Literal[""]
    seeds: int = Field(ge=1)
    cpu_ref: bool
    demands: tuple[str, ...] = Field(min_length=1)


class Pending(_Row):
    """A check that is demanded and not built: MISSING wherever it is demanded."""

    category: Category | Literal["none"]
    title: str


class GateRow(_Row):
    """A hard gate: it ends as the worst of its checks that the scale demands."""

    id: str
    title: str
    checks: tuple[str, ...] = Field(min_length=1)
    scales: tuple[Scale, ...] = Field(min_length=1)


class Requirement(_Row):
    """One condition of a rung: a check ended at least so, or every record of a metric lies within bounds.

    end  which number of a record counts: its value, or an end of its interval
    """

    check: str
    status: Literal["PASS", "WARN"] | None = None
    metric: str = ""
    end: Literal["value", "low", "high"] = "value"
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _is_one_condition(self) -> Self:
        bounds = [self.at_least, self.above, self.at_most, self.below]
        given = sum(bound is not None for bound in bounds)
        if (self.status is None) == (not self.metric):
            raise ValueError("give either status, or metric with one of at_least, above, at_most, below")
        if given != (1 if self.metric else 0):
            raise ValueError("a metric takes exactly one of at_least, above, at_most, below, and a status takes none")
        return self

    @property
    def what(self) -> str:
        """What is looked at: ``D1``, ``STABILITY.seed_sd``, ``CANARY.macro_accuracy (lower end)``."""
        end = {"value": "", "low": " (lower end of its interval)", "high": " (upper end of its interval)"}[self.end]
        return f"{self.check}.{self.metric}{end}" if self.metric else self.check

    @property
    def condition(self) -> str:
        """What it must be: ``PASS``, ``at most 0.05``."""
        if self.status is not None:
            return "PASS" if self.status == "PASS" else "PASS or WARN"
        words = {"at_least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return next(f"{word.replace('_', ' ')} {bound:.4g}" for word, bound in words.items() if bound is not None)

    def holds(self, number: float) -> bool:
        """Whether a number lies within the bound; NaN never does."""
        if self.at_least is not None:
            return number >= self.at_least
        if self.above is not None:
            return number > self.above
        if self.at_most is not None:
            return number <= self.at_most
        assert self.below is not None, "a requirement on a metric has one bound"
        return number < self.below


class Rung(_Row):
    """One step of a score: it holds when all its requirements do."""

    says: str
    requires: tuple[Requirement, ...] = Field(min_length=1)


class Matrix(_Row):
    """Weights of the four scores and what totals mean."""

    go: float
    caution: float
    one_seed_cap: int = Field(ge=0, le=MAX_SCORE)
    weights: dict[Category, float]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if set(self.weights) != set(CATEGORIES):
            raise ValueError(f"weights are those of {', '.join(CATEGORIES)}")
        if not 0 < self.caution < self.go <= MAX_SCORE * sum(self.weights.values()):
            raise ValueError(f"caution {self.caution:g} and go {self.go:g} must rise and be reachable")
        return self


class Table(_Row):
    """The content of evidence.toml.

    may_set  keys of the preset that ``--set`` may change and the run still ends in a verdict
    """

    may_set: tuple[str, ...]
    scales: dict[Scale, ScaleRow]
    pending: dict[str, Pending] = {}
    gates: tuple[GateRow, ...]
    matrix: Matrix
    rungs: dict[Category, tuple[Rung, ...]]


@dataclass(frozen=True)
class EvidenceTable:
    """The table, and the SHA-256 of the file it came from."""

    table: Table
    sha256: str
    path: Path

    @property
    def matrix(self) -> Matrix:
        """Weights and bounds of the total."""
        return self.table.matrix

    @property
    def pending(self) -> Mapping[str, Pending]:
        """Checks that are demanded somewhere and not built."""
        return self.table.pending

    def scale(self, name: str) -> ScaleRow:
        """The row of a scale. Raises EvidenceError for any other name."""
        if name not in self.table.scales:
            raise EvidenceError(f"no scale is called {name!r}; {did_you_mean(name, self.table.scales)}")
        return self.table.scales[name]

    def demanded_at(self, check: str) -> list[str]:
        """The scales that demand a check, smallest first."""
        return [scale for scale in SCALES.values() if check in self.scale(scale).demands]

    def gates_at(self, scale: str) -> list[GateRow]:
        """The hard gates of a scale."""
        return [gate for gate in self.table.gates if scale in gate.scales]

    def gates_of(self, check: str, scale: str) -> list[GateRow]:
        """The hard gates of a scale that a check belongs to."""
        return [gate for gate in self.gates_at(scale) if check in gate.checks]

    def rungs(self, category: Category) -> tuple[Rung, ...]:
        """The rungs of a score, lowest first."""
        return self.table.rungs[category]

    def category(self, check: str, checks: Checks) -> str:
        """The score that a check feeds, or ``none``."""
        return checks[check].category if check in checks else self.pending[check].category


def load_evidence(checks: Checks, thresholds: Thresholds, path: Path = EVIDENCE_PATH) -> EvidenceTable:
    """Read and validate the evidence table against the checks and their limits. Raises EvidenceError."""
    try:
        content = path.read_bytes()
        table = Table.model_validate(tomllib.loads(content.decode()))
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise EvidenceError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise EvidenceError(f"{path}: {explain_validation(error)}") from error
    for fault in _faults(table, checks, thresholds):
        raise EvidenceError(f"{path}: {fault}")
    return EvidenceTable(table, hashlib.sha256(content).hexdigest(), path)


def _faults(table: Table, checks: Checks, thresholds: Thresholds) -> list[str]:
    """What the table says and the checks do not bear out."""
    known = sorted({*checks, *table.pending})
    faults = [f"[pending.{name}] is a check by now; take the line out" for name in table.pending if name in checks]
    faults += [f"[scales] lacks {scale}" for scale in SCALES.values() if scale not in table.scales]
    faults += [f"[rungs] lacks {name}" for name in CATEGORIES if len(table.rungs.get(name, ())) != MAX_SCORE]
    for scale, row in table.scales.items():
        if len(set(row.demands)) != len(row.demands):
            faults.append(f"[scales.{scale}] demands a check twice")
        for check in row.demands:
            if check not in known:
                faults.append(f"[scales.{scale}] demands {check!r}, which is no check; {did_you_mean(check, known)}")
            elif check in checks and scale not in checks[check].scales:
                faults.append(f"[scales.{scale}] demands {check}, which does not run at {scale} (checks.toml)")
            elif check in checks and checks[check].study:
                faults.append(f"[scales.{scale}] demands {check}, which is a study (checks.toml)")
            elif check in checks:
                absent = [need for need in checks[check].needs if need not in row.demands]
                faults += [f"[scales.{scale}] demands {check} and not {need}, which it needs" for need in absent]
    for gate in table.gates:
        faults += [f"[gates] {gate.id} names {check!r}, no check" for check in gate.checks if check not in known]
    for category, rungs in table.rungs.items():
        for requirement in (each for rung in rungs for each in rung.requires):
            check, metric = requirement.check, requirement.metric
            if check not in known:
                faults.append(f"[rungs.{category}] names {check!r}, which is no check; {did_you_mean(check, known)}")
            elif metric and check in checks and metric not in thresholds.of(check):
                faults.append(f"[rungs.{category}] names {check}.{metric}, which has no limits in thresholds.toml")
    return faults


def at_least(status: Status, demanded: Literal["PASS", "WARN"]) -> bool:
    """Whether a check ended so or better. What does not apply asks for nothing."""
    if status is Status.NA:
        return True
    return status is Status.PASS or (demanded == "WARN" and status is Status.WARN)
