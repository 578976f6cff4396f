"""The report of a run: a pure function of the records, the table of checks and the limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.checks import Check, Checks
from harness.comparison import Comparison, Metrics, compare, metrics_of
from harness.records import SEVERITY, Record, Status, worst
from harness.thresholds import margin
from harness.wording import format_margin

SCHEMA_VERSION = 1

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_INCOMPLETE = 11

# Train-level claims need this many seeds; one at 125M is flagged all the same.
SEEDS_DEMANDED = {"3.5M": 3, "8M": 3, "30M": 2, "125M": 1}

REPORT_FILE = "report.json"
METRICS_FILE = "baseline_metrics.json"
THRESHOLDS_FILE = "thresholds.toml"
DECISION_FILES = ("decision.html", "decision.md")
STATEFULNESS_FILES = ("statefulness.html", "statefulness.md")
# Suites that look inside the state: their checks make the statefulness page.
STATE_SUITES = ("state", "diagnostics")

Outcome = Literal["PASS", "WARN", "FAIL", "INCOMPLETE", "NOT JUDGED"]


class CheckResult(BaseModel):
    """One check as it ended. worst is the record that decided, margin its distance to the pass band."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    status: Status
    title: str
    why: str
    hard_gate: bool
    category: str
    worst: Record | None
    margin: str
    rerun: str
    next: str


class NotRun(BaseModel):
    """Something demanded at this scale that gave no evidence, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    nodeid: str
    reason: str


class PublishedFigure(BaseModel):
    """A figure that a check published: its files beside the report, and what it shows in words.

    image is empty where it could not be drawn; data holds the numbers all the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    check: str
    title: str
    text: str
    image: str
    data: str


class Report(BaseModel):
    """report.json. A suite run gives no verdict on scaling up: verdict, categories and gates stay empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: Literal["suite"] = "suite"
    verdict: None = None
    outcome: Outcome
    exit_code: int
    headline: str
    stamps: list[str]
    scope: str
    scale: dict[str, str | None]
    model: str
    parameters: int | None
    corpus: str
    device: str
    seeds: list[int]
    command: str
    fail_on_warn: bool
    other_failures: int
    interrupted: int | None
    checks: list[CheckResult]
    records: list[Record]
    categories: dict[str, Any] = {}
    total: None = None
    total_range: None = None
    hard_gates: list[Any] = []
    not_run: list[NotRun]
    waivers: list[Any] = []
    plots: list[str]
    figures: list[PublishedFigure] = []
    documents: list[str] = []
    comparison: Comparison | None = None
    provenance: dict[str, Any]

    @property
    def metrics(self) -> Metrics:
        """Its numbers, as baseline_metrics.json holds them."""
        return metrics_of(
            self.records,
            model=self.model,
            scale=str(self.scale["from"]),
            corpus=self.corpus,
            device=self.device,
            git_sha=str(self.provenance.get("git", {}).get("sha", "")),
        )


@dataclass(frozen=True)
class RunFacts:
    """Everything a report is made from.

    planned       check by node id, as collected
    rerun         command line by check id
    other_failures failed tests of the session that are no checks; interrupted: pytest's exit code if it was cut short
    runs          published trainings: directory, seed, name, baselines
    figures       published figures: name, check, and the figure as JSON
    baseline      numbers of an earlier run to hold these against, and what the user called it
    provenance    git, versions, gpu, cpu, thresholds_sha256, wall_s, as harness.provenance collects them
    """

    model: str
    parameters: int | None
    corpus: str
    embedded_corpus: bool
    device: str
    scope: str
    scale: str
    seeds: tuple[int, ...]
    command: str
    records: Sequence[Record]
    planned: Mapping[str, str]
    rerun: Mapping[str, str]
    fail_on_warn: bool = False
    other_failures: int = 0
    interrupted: int | None = None
    runs: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Mapping[str, str]] = ()
    baseline: Metrics | None = None
    baseline_name: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_report(
    facts: RunFacts,
    checks: Checks,
    plots: Sequence[str] = (),
    remarks: Sequence[str] = (),
    figures: Sequence[PublishedFigure] = (),
) -> Report:
    """Judge the run as a whole. A planned item without a record counts as MISSING, never as absent.

    plots and figures are files beside the report; remarks are added to its stamps.
    """
    records = list(facts.records)
    results = sorted(
        (_check_result(checks[check_id], facts) for check_id in dict.fromkeys(facts.planned.values())),
        key=lambda result: (SEVERITY.index(result.status), badness(result.worst) if result.worst else (0, 0.0)),
    )
    outcome, exit_code = decide([result.status for result in results], facts)
    about_state = any(checks[result.id].suite in STATE_SUITES for result in results)
    report = Report(
        outcome=outcome,
        exit_code=exit_code,
        headline=_headline(outcome, results, facts),
        stamps=[*_stamps(records, facts), *remarks],
        scope=facts.scope,
        scale={"from": facts.scale, "to": None},
        model=facts.model,
        parameters=facts.parameters,
        corpus=facts.corpus,
        device=facts.device,
        seeds=list(facts.seeds),
        command=facts.command,
        fail_on_warn=facts.fail_on_warn,
        other_failures=facts.other_failures,
        interrupted=facts.interrupted,
        checks=results,
        records=records,
        not_run=_not_run(results, records, checks, facts),
        plots=list(plots),
        figures=list(figures),
        documents=[*DECISION_FILES, *(STATEFULNESS_FILES if about_state else ())],
        provenance=dict(facts.provenance),
    )
    if facts.baseline is None:
        return report
    return report.model_copy(update={"comparison": compare(report.metrics, facts.baseline, facts.baseline_name)})


def decide(statuses: Sequence[Status], facts: "RunFacts | Report") -> tuple[Outcome, int]:
    """The outcome of some checks and the exit code that goes with it: 1 over 11 over 0; pytest's own 2 to 5 stay."""
    failed = Status.FAIL in statuses or (facts.fail_on_warn and Status.WARN in statuses)
    incomplete = Status.MISSING in statuses or Status.INVALID in statuses or facts.interrupted is not None
    passed: Outcome = "WARN" if Status.WARN in statuses else "PASS" if Status.PASS in statuses else "NOT JUDGED"
    outcome: Outcome = "FAIL" if failed else "INCOMPLETE" if incomplete else passed
    if facts.interrupted is not None:
        return outcome, facts.interrupted
    if failed or facts.other_failures:
        return outcome, EXIT_FAIL
    return outcome, EXIT_INCOMPLETE if incomplete else EXIT_PASS


def badness(record: Record) -> tuple[int, float]:
    """Sorts records worst first: by status, then by the margin relative to the limit.

    An exact claim that fails is worse than any miss; one that holds has nothing to spare and nothing to lose.
    """
    if record.threshold is None or record.value is None:
        return SEVERITY.index(record.status), math.inf if record.status is Status.PASS else -math.inf
    distance = margin(record.threshold, record.value, record.ci, record.direction)
    if math.isnan(distance):
        return SEVERITY.index(record.status), -math.inf
    ends = [abs(end) for end in record.threshold.pass_band if math.isfinite(end) and end]
    return SEVERITY.index(record.status), distance / min(ends, default=1.0)


def _check_result(check: Check, facts: RunFacts) -> CheckResult:
    own = [record for record in facts.records if record.check == check.id and not record.info]
    reported = {record.nodeid for record in own}
    silent = any(owner == check.id and nodeid not in reported for nodeid, owner in facts.planned.items())
    decisive = min(own, key=badness, default=None)
    statuses = [record.status for record in own]
    return CheckResult(
        id=check.id,
        status=worst([*statuses, Status.MISSING] if silent else statuses),
        title=check.title,
        why=check.why,
        hard_gate=check.hard_gate,
        category=check.category,
        worst=decisive,
        margin=format_margin(decisive) if decisive else "",
        rerun=facts.rerun.get(check.id, ""),
        next=check.next,
    )


def _headline(outcome: Outcome, results: Sequence[CheckResult], facts: RunFacts) -> str:
    counts = {status: sum(result.status == status for result in results) for status in SEVERITY}
    tally = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    caveats = ["cpu_ref"] if facts.scope == "cpu_ref" else []
    caveats += ["embedded corpus"] if facts.embedded_corpus and facts.scale != "3.5M" else []
    scope = f" ({', '.join(caveats)})" if caveats else ""
    return f"{outcome}{scope}: {facts.model} at {facts.scale}, {tally or 'no check ran'}"


def _stamps(records: Sequence[Record], facts: RunFacts) -> list[str]:
    stamps = ["a suite run: no verdict on scaling up"]
    if facts.embedded_corpus:
        stamps.append("smoke evidence: embedded corpus")
    if facts.scope == "cpu_ref":
        stamps.append("cpu_ref scope: the kernel half of G0 is not evidenced; authorises nothing on a GPU")
    demanded = SEEDS_DEMANDED[facts.scale]
    if len(facts.seeds) < demanded:
        given = "1 seed" if len(facts.seeds) == 1 else f"{len(facts.seeds)} seeds"
        stamps.append(f"{given}: train-level claims at {facts.scale} need {demanded}")
    elif len(facts.seeds) == 1:
        stamps.append("single seed")
    judged = {(record.check, record.metric): record.threshold for record in records if record.threshold}
    uncalibrated = sum(not limits.calibrated for limits in judged.values())
    if uncalibrated:
        stamps.append(f"{uncalibrated} of {len(judged)} limits uncalibrated")
    if facts.provenance.get("git", {}).get("dirty"):
        stamps.append("uncommitted changes in the working tree")
    return stamps


def _not_run(
    results: Sequence[CheckResult], records: Sequence[Record], checks: Checks, facts: RunFacts
) -> list[NotRun]:
    without_verdict = {Status.MISSING, Status.INVALID, Status.UNSUPPORTED, Status.NA}
    rows = [
        NotRun(check=record.check, nodeid=record.nodeid, reason=f"{record.status}: {record.note}")
        for record in records
        if record.status in without_verdict and not record.info
    ]
    ran = {result.id for result in results}
    demanded = [check for check in checks.values() if facts.scale in check.scales and check.id not in ran]
    return rows + [NotRun(check=check.id, nodeid="", reason="not selected in this run") for check in demanded]
