"""The plan of a graduation: what is demanded, what has to be trained for it, and what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.checks import Checks
from harness.graduation.evidence import SMOKE_SCALE, EvidenceTable
from harness.wording import format_duration

MEASURING_SECONDS = {"cpu": 5.0, "cuda": 1.0}
"""To measure one check of one seed, trainings aside: the mean of the suites at 3.5M on two CPU cores (AMD EPYC)."""


@dataclass(frozen=True)
class PlannedTraining:
    """A training that a session needs.

    stored   whether the store holds it; begun: an interrupted one will be continued
    seconds  what it takes, by the pace of earlier ones; None where nothing of the kind was ever timed
    shared   of its steps those that a shorter training takes for it (``harness.beginnings``)
    """

    label: str
    steps: int
    tokens: int
    stored: bool
    begun: bool
    seconds: float | None
    shared: int = 0


@dataclass(frozen=True)
class Plan:
    """What ``--graduate`` would do. limits: what keeps the verdict from being GO, known before anything runs."""

    model: str
    scale: str
    following: str
    device: str
    seeds: int
    corpus: str
    checks: Sequence[tuple[str, str]]
    pending: Sequence[tuple[str, str]]
    gates: Sequence[tuple[str, str]]
    trainings: Sequence[PlannedTraining]
    limits: Sequence[str]

    @property
    def seconds(self) -> float | None:
        """What is left to pay; None where a training was never timed on such a device."""
        if any(training.seconds is None for training in self.trainings):
            return None
        return self.measuring_seconds + sum(training.seconds or 0.0 for training in self.trainings)

    @property
    def measuring_seconds(self) -> float:
        """What the checks take, trainings aside."""
        return MEASURING_SECONDS[self.device] * len(self.checks) * self.seeds

    def lines(self) -> list[str]:
        """The plan as text."""
        way = f"from {self.scale} to {self.following}" if self.following else f"beyond {self.scale}"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        stored = sum(training.stored for training in self.trainings)
        total = self.seconds
        left = "unknown: nothing was trained on such a device yet" if total is None else format_duration(total)
        return [
            f"may {self.model} go {way}? ({self.device}, {self.corpus}, {seeds})",
            *(f"the verdict will be INCOMPLETE: {limit}" for limit in self.limits),
            "",
            f"{len(self.checks)} checks, in this order",
            *(f"  {check:<12}{title}" for check, title in self.checks),
            *([f"{len(self.pending)} demanded, and nothing measures them yet"] if self.pending else []),
            *(f"  {check:<12}{title}" for check, title in self.pending),
            f"{len(self.gates)} hard gates",
            *(f"  {gate:<12}{title}" for gate, title in self.gates),
            f"{len(self.trainings)} trainings, {stored} of them in the store",
            *(_training(training) for training in self.trainings),
            "",
            f"time left: {left}",
        ]  # fmt: skip


def _training(training: PlannedTraining) -> str:
    new = f"to train, the first {training.shared} steps with a shorter one" if training.shared else "to train"
    have = "stored" if training.stored else "begun, will be continued" if training.begun else new
    cost = f", {format_duration(training.seconds)}" if training.seconds else ""
    return f"  {training.label:<46}{training.steps:>6} steps {training.tokens / 1e6:>7.2f}M tokens  {have}{cost}"


def recipes_of(scale: str, checks: Checks, table: EvidenceTable) -> list[str]:
    """The recipes behind what a scale demands, each once."""
    demanded = [checks[check] for check in table.scale(scale).demands if check in checks]
    return list(dict.fromkeys(recipe for check in demanded for recipe in check.trainings))


def make_plan(
    *,
    model: str,
    scale: str,
    device: str,
    seeds: int,
    corpus: str,
    embedded_corpus: bool,
    trainings: Sequence[PlannedTraining],
    checks: Checks,
    table: EvidenceTable,
) -> Plan:
    """The plan for what a scale demands: checks after what they need, as they will run."""
    row = table.scale(scale)
    depths = checks.depths({})
    pending = [(check, table.pending[check].title) for check in row.demands if check not in checks]
    limits = [f"{len(pending)} demanded checks are not built yet"] if pending else []
    limits += [f"{scale} needs a GPU"] if device == "cpu" and not row.cpu_ref else []
    limits += [f"the embedded corpus is smoke evidence at {scale}"] if embedded_corpus and scale != SMOKE_SCALE else []
    built = sorted((check for check in row.demands if check in checks), key=lambda check: depths[check])
    return Plan(
        model=model,
        scale=scale,
        following=row.next,
        device=device,
        seeds=seeds,
        corpus=corpus,
        checks=[(check, checks[check].title) for check in built],
        pending=pending,
        gates=[(gate.id, gate.title) for gate in table.gates_at(scale)],
        trainings=trainings,
        limits=limits,
    )
