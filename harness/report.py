"""The report of a run: a pure function of the records and the tables of checks, limits and evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.checks import SCALES, Check
from harness.comparison import Comparison, Metrics, compare, metrics_of
from harness.figures import Passage
from harness.graduation.evidence import Category
from harness.graduation.ledger import Seal
from harness.graduation.matrix import (
    Bundle,
    CategoryScore,
    Decision,
    HardGate,
    Settled,
    Verdict,
    decide_graduation,
)
from harness.graduation.waivers import Waiver
from harness.hashing import sha256_json
from harness.items import ItemSet, items_sha256, items_text
from harness.ranking import badness
from harness.records import SEVERITY, JsonBand, Record, Status, worst
from harness.tables import Tables
from harness.wording import format_margin

SCHEMA_VERSION = 2

EXIT_PASS = 0
EXIT_FAIL = 1
EXIT_CAUTION = 10
EXIT_INCOMPLETE = 11
EXIT_OF = {Verdict.GO: EXIT_PASS, Verdict.CAUTION: EXIT_CAUTION, Verdict.INCOMPLETE: EXIT_INCOMPLETE}
"""Exit codes of a graduation; HOLD and NO-GO give 1."""

REPORT_FILE = "report.json"
METRICS_FILE = "baseline_metrics.json"
DECISION_FILES = ("decision.html", "decision.md")
STATEFULNESS_FILES = ("statefulness.html", "statefulness.md")
# The one-page binary of a graduation: the first only for GO
GATE_FILES = ("VALIDATION_GATE_PASS.md", "VALIDATION_GATE_FAIL.md")
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
    hard_gates: list[str]
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

    image is empty where it could not be drawn, and for text; data holds the numbers all the same. passages: the text
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    check: str
    title: str
    text: str
    image: str
    data: str
    passages: list[Passage] = []


class Report(BaseModel):
    """report.json. A suite run gives no verdict on scaling up: verdict, categories and gates stay empty.

    planned, seals   which items were to run, and what each reported: a record that is lost or changed is seen
    settled          every demanded check as the audit of its records left it
    overrides        what ``--set`` changed of the preset
    items_sha256     of items.jsonl beside it: numbers by document, by which two reports are compared
    content_sha256   of everything else in here: what was edited by hand no longer has it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: Literal["suite", "graduation"]
    verdict: Verdict | None = None
    reasons: list[str] = []
    outcome: Outcome | Verdict
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
    branches: list[str]
    embedded_corpus: bool
    overrides: dict[str, str] = {}
    planned: dict[str, str]
    seals: list[Seal]
    categories: dict[Category, CategoryScore] = {}
    total: float | None = None
    total_range: JsonBand | None = None
    hard_gates: list[HardGate] = []
    settled: list[Settled] = []
    not_run: list[NotRun]
    waivers: list[Waiver] = []
    plots: list[str]
    figures: list[PublishedFigure] = []
    documents: list[str] = []
    items_sha256: str
    comparison: Comparison | None = None
    provenance: dict[str, Any]
    content_sha256: str = ""

    def signed(self) -> "Report":
        """The report with the hash of its content."""
        return self.model_copy(update={"content_sha256": self.digest()})

    def digest(self) -> str:
        """SHA-256 of the content, as JSON."""
        return sha256_json(self.model_dump(mode="json", exclude={"content_sha256"}))

    def bundle(self) -> Bundle:
        """The evidence in it, for the decision."""
        return Bundle(
            records=self.records,
            planned=self.planned,
            seals={seal.nodeid: seal for seal in self.seals},
            model=self.model,
            scale=str(self.scale["from"]),
            scope=self.scope,
            seeds=self.seeds,
            branches=len(self.branches),
            embedded_corpus=self.embedded_corpus,
            fail_on_warn=self.fail_on_warn,
            interrupted=self.interrupted is not None,
            overrides=self.overrides,
            waivers=self.waivers,
        )

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

    graduates     whether this is a decision on scaling up
    planned       check by node id, as collected; seals: what each item that ended reported
    rerun         command line by check id
    other_failures failed tests of the session that are no checks; interrupted: pytest's exit code if it was cut short
    runs          published trainings: directory, seed, name, baselines
    figures       published figures: name, check, and the figure as JSON
    items         published metrics by document
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
    graduates: bool = False
    seals: Sequence[Seal] = ()
    branches: Sequence[str] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    waivers: Sequence[Waiver] = ()
    fail_on_warn: bool = False
    other_failures: int = 0
    interrupted: int | None = None
    runs: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[Mapping[str, str]] = ()
    items: Sequence[ItemSet] = ()
    baseline: Metrics | None = None
    baseline_name: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def build_report(
    facts: RunFacts,
    tables: Tables,
    plots: Sequence[str] = (),
    remarks: Sequence[str] = (),
    figures: Sequence[PublishedFigure] = (),
) -> Report:
    """Judge the run as a whole. A planned item without a record counts as MISSING, never as absent.

    plots and figures are files beside the report; remarks are added to its stamps.
    """
    checks, records = tables.checks, list(facts.records)
    results = sorted(
        (_check_result(checks[check_id], facts, tables) for check_id in dict.fromkeys(facts.planned.values())),
        key=lambda result: (SEVERITY.index(result.status), badness(result.worst) if result.worst else (0, 0.0)),
    )
    outcome, exit_code = decide([result.status for result in results], facts)
    about_state = any(checks[result.id].suite in STATE_SUITES for result in results)
    report = Report(
        kind="graduation" if facts.graduates else "suite",
        outcome=outcome,
        exit_code=exit_code,
        headline=_headline(outcome, results, facts),
        stamps=[*_stamps(records, facts, tables), *remarks],
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
        branches=list(facts.branches),
        embedded_corpus=facts.embedded_corpus,
        overrides=dict(facts.overrides),
        planned=dict(facts.planned),
        seals=list(facts.seals),
        not_run=_not_run(results, records, tables, facts),
        waivers=list(facts.waivers),
        plots=list(plots),
        figures=list(figures),
        documents=[*DECISION_FILES, *(STATEFULNESS_FILES if about_state else ())],
        items_sha256=items_sha256(items_text(facts.items)),
        provenance=dict(facts.provenance),
    )
    if facts.graduates:
        report = graduate(report, decide_graduation(report.bundle(), *_in_force(tables)), tables)
    if facts.baseline is not None:
        changes = compare(report.metrics, facts.baseline, facts.baseline_name)
        report = report.model_copy(update={"comparison": changes})
    return report.signed()


def graduate(report: Report, decision: Decision, tables: Tables) -> Report:
    """A report with its decision, exit code and headline."""
    following = tables.evidence.scale(str(report.scale["from"])).next
    exit_code = EXIT_OF.get(decision.verdict, EXIT_FAIL)
    if report.other_failures:
        exit_code = EXIT_FAIL
    low, high = decision.total_range
    total = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    tally = _tally([settled.status for settled in decision.checks])
    scope = _scope(report.scope, report.embedded_corpus, str(report.scale["from"]))
    way = f"from {report.scale['from']} to {following}" if following else f"beyond {report.scale['from']}"
    most = sum(score.weight for score in decision.categories.values()) * 3
    gate_file = GATE_FILES[decision.verdict is not Verdict.GO]
    return report.model_copy(
        update={
            "verdict": decision.verdict,
            "reasons": decision.reasons,
            "outcome": decision.verdict,
            "exit_code": report.interrupted if report.interrupted is not None else exit_code,
            "headline": f"{decision.verdict}{scope}: {report.model} {way}, {total} of {most:g} points; {tally}",
            "scale": {"from": report.scale["from"], "to": following or None},
            "categories": decision.categories,
            "total": decision.total,
            "total_range": decision.total_range,
            "hard_gates": decision.hard_gates,
            "settled": decision.checks,
            "documents": [*(name for name in report.documents if name not in GATE_FILES), gate_file],
        }
    )


def _in_force(tables: Tables) -> tuple[Any, Any, Any]:
    return tables.evidence, tables.checks, tables.thresholds


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


def _check_result(check: Check, facts: RunFacts, tables: Tables) -> CheckResult:
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
        hard_gates=[gate.id for gate in tables.evidence.gates_of(check.id, facts.scale)],
        category=check.category,
        worst=decisive,
        margin=format_margin(decisive) if decisive else "",
        rerun=facts.rerun.get(check.id, ""),
        next=check.next,
    )


def _headline(outcome: Outcome, results: Sequence[CheckResult], facts: RunFacts) -> str:
    tally = _tally([result.status for result in results])
    scope = _scope(facts.scope, facts.embedded_corpus, facts.scale)
    return f"{outcome}{scope}: {facts.model} at {facts.scale}, {tally or 'no check ran'}"


def _tally(statuses: Sequence[Status]) -> str:
    counts = {status: statuses.count(status) for status in SEVERITY}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _scope(scope: str, embedded_corpus: bool, scale: str) -> str:
    """What belongs to the first words: evidence of a CPU, and of the embedded corpus where it is not enough."""
    caveats = ["cpu_ref"] if scope == "cpu_ref" else []
    caveats += ["embedded corpus"] if embedded_corpus and scale != SCALES["tiny"] else []
    return f" ({', '.join(caveats)})" if caveats else ""


def _stamps(records: Sequence[Record], facts: RunFacts, tables: Tables) -> list[str]:
    stamps = [] if facts.graduates else ["a suite run: no verdict on scaling up"]
    stamps += [
        f"{waiver.check} is waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"
        for waiver in facts.waivers
    ]
    if facts.embedded_corpus:
        stamps.append("smoke evidence: embedded corpus")
    if facts.scope == "cpu_ref":
        stamps.append("cpu_ref scope: the kernel half of G0 is not evidenced; authorises nothing on a GPU")
    if facts.overrides:
        changed = ", ".join(f"{key}={value}" for key, value in facts.overrides.items())
        stamps.append(f"the preset was changed: {changed}")
    demanded = tables.evidence.scale(facts.scale).seeds
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
    results: Sequence[CheckResult], records: Sequence[Record], tables: Tables, facts: RunFacts
) -> list[NotRun]:
    without_verdict = {Status.MISSING, Status.INVALID, Status.UNSUPPORTED, Status.NA}
    rows = [
        NotRun(check=record.check, nodeid=record.nodeid, reason=f"{record.status}: {record.note}")
        for record in records
        if record.status in without_verdict and not record.info
    ]
    ran = {result.id for result in results}
    pending = tables.evidence.pending
    for check in tables.evidence.scale(facts.scale).demands:
        if check in pending and facts.graduates:
            rows.append(NotRun(check=check, nodeid="", reason=f"nothing measures it yet: {pending[check].title}"))
        elif check not in ran and check in tables.checks:
            rows.append(NotRun(check=check, nodeid="", reason="not selected in this run"))
    return rows
