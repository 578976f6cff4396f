"""The decision matrix: a pure function of records, evidence table, checks, limits and waivers.

Four scores of 0 to 3 (or none where evidence is missing), weighted; hard gates; and the verdict that follows. Nothing
in here measures, reads a clock or a file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.audit import contradiction, repeated
from harness.checks import MAIN_TRAININGS, Check, Checks
from harness.graduation.evidence import (
    CATEGORIES,
    MAX_SCORE,
    SMOKE_SCALE,
    Category,
    EvidenceTable,
    Requirement,
    at_least,
)
from harness.graduation.ledger import Seal, broken
from harness.graduation.waivers import Waiver
from harness.records import SEVERITY, Record, Status, worst
from harness.thresholds import Thresholds
from harness.witnesses import disagreement
from harness.wording import format_number, label

NO_EVIDENCE = frozenset({Status.MISSING, Status.INVALID, Status.UNSUPPORTED})


class Verdict(StrEnum):
    """Whether the model may be scaled up. Only GO says so; the last three are of one rank: it may not."""

    GO = "GO"
    CAUTION = "CAUTION"
    HOLD = "HOLD"
    NO_GO = "NO-GO"
    INCOMPLETE = "INCOMPLETE"

    @property
    def rank(self) -> int:
        """2 for GO, 1 for CAUTION, 0 for what does not authorise anything."""
        return {Verdict.GO: 2, Verdict.CAUTION: 1}.get(self, 0)


class Settled(BaseModel):
    """How a demanded check ended once its records were audited. waived: a FAIL that counts as WARN."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    status: Status
    why: str = ""
    waived: bool = False


class CategoryScore(BaseModel):
    """One score. why: which rung holds; unmet: what the next one lacks, or what is missing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: int | None
    weight: float
    why: str
    unmet: list[str] = []
    checks: list[str] = []


class HardGate(BaseModel):
    """One hard gate, as the worst of the checks that this scale demands of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    status: Status
    checks: list[str]
    why: str = ""


class Decision(BaseModel):
    """What follows from the evidence. reasons: why the verdict is no better, the gravest first.

    total is None where a score is; total_range takes a missing score as 0 and as 3.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    reasons: list[str]
    categories: dict[Category, CategoryScore]
    total: float | None
    total_range: tuple[float, float]
    hard_gates: list[HardGate]
    checks: list[Settled]


@dataclass(frozen=True)
class Bundle:
    """The evidence of one graduation.

    planned          check by node id, as collected; seals by node id
    branches         of the subject: with fewer than two, checks of hybrids do not apply
    embedded_corpus  smoke evidence only above the smallest scale
    fail_on_warn     every WARN counts as a FAIL
    overrides        what was changed of the preset, by dotted key
    """

    records: Sequence[Record]
    planned: Mapping[str, str]
    seals: Mapping[str, Seal]
    model: str
    scale: str
    scope: str
    seeds: Sequence[int]
    branches: int
    embedded_corpus: bool = False
    fail_on_warn: bool = False
    interrupted: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)
    waivers: Sequence[Waiver] = field(default=())


def decide_graduation(bundle: Bundle, table: EvidenceTable, checks: Checks, thresholds: Thresholds) -> Decision:
    """Audit every demanded check, score the four categories, and give the verdict with its reasons."""
    row = table.scale(bundle.scale)
    auditor = _Auditor(bundle, table, checks, thresholds)
    settled = {check: auditor.settle(check) for check in row.demands}
    scores = {name: _score(name, settled, bundle, table, checks) for name in CATEGORIES}
    gates = [_gate(gate.id, gate.title, gate.checks, settled) for gate in table.gates_at(bundle.scale)]
    low, high = (
        sum(score.weight * (missing if score.score is None else score.score) for score in scores.values())
        for missing in (0, MAX_SCORE)
    )
    complete = all(score.score is not None for score in scores.values())
    verdict, reasons = _verdict(bundle, table, settled, scores, gates, (low, high))
    return Decision(
        verdict=verdict,
        reasons=reasons,
        categories=scores,
        total=low if complete else None,
        total_range=(low, high),
        hard_gates=gates,
        checks=sorted(settled.values(), key=lambda each: SEVERITY.index(each.status)),
    )


# ---- how a check ended -----------------------------------------------------------------------------------------------


class _Auditor:
    """Takes nothing that a record says of itself on trust that can be computed again."""

    def __init__(self, bundle: Bundle, table: EvidenceTable, checks: Checks, thresholds: Thresholds):
        self._bundle, self._table, self._checks, self._thresholds = bundle, table, checks, thresholds
        self._by_nodeid: dict[str, list[Record]] = {nodeid: [] for nodeid in bundle.planned}
        self._strays: dict[str, list[Record]] = {}
        for record in bundle.records:
            own = self._by_nodeid if record.nodeid in self._by_nodeid else self._strays
            own.setdefault(record.nodeid, []).append(record)

    def settle(self, check_id: str) -> Settled:
        """The status of a demanded check, and why it is no better."""
        status, why = self._audit(check_id)
        if status is Status.WARN and self._bundle.fail_on_warn:
            status, why = Status.FAIL, f"{why} (--fail-on-warn)"
        waiver = next((waiver for waiver in self._bundle.waivers if waiver.check == check_id), None)
        if waiver is None or status is not Status.FAIL:
            return Settled(check=check_id, status=status, why=why)
        lacking = self._lacking(check_id)
        if lacking:
            # a FAIL outweighs what is missing, so a waiver that lifted it would hide that too
            return Settled(check=check_id, status=status, why=f"{why}; the waiver does not hold, for besides {lacking}")
        note = f"{why}; waived by {waiver.owner} until {waiver.expires}: {waiver.reason}"
        return Settled(check=check_id, status=Status.WARN, why=note, waived=True)

    def _audit(self, check_id: str) -> tuple[Status, str]:
        if check_id not in self._checks:
            return Status.MISSING, "nothing measures it yet"
        nodeids = [nodeid for nodeid, check in self._bundle.planned.items() if check == check_id]
        if not nodeids:
            return Status.MISSING, "not run"
        records: list[Record] = []
        for nodeid in nodeids:
            own = self._by_nodeid[nodeid]
            fault = self._unsound(check_id, nodeid, own)
            if fault is not None:
                return fault
            records += own
        stray = [record for own in self._strays.values() for record in own if record.check == check_id]
        if stray:
            return Status.INVALID, f"a record of {stray[0].nodeid or 'no item'}, which was not planned"
        judged = [record for record in records if not record.info]
        status, why = self._status(self._checks[check_id], judged)
        unseen = self._seeds_without_evidence(self._checks[check_id], judged)
        if unseen and status in (Status.PASS, Status.WARN):
            return Status.MISSING, unseen
        return status, why

    def _lacking(self, check_id: str) -> str:
        """What evidence a check that FAILs does not have, empty when it has all."""
        judged = [
            record
            for nodeid, check in self._bundle.planned.items()
            if check == check_id
            for record in self._by_nodeid[nodeid]
            if not record.info
        ]
        absent = [record for record in judged if record.status in NO_EVIDENCE and not self._is_excused(record)]
        if absent:
            return f"it is {absent[0].status}: {_what(absent[0])}"
        unseen = self._seeds_without_evidence(self._checks[check_id], judged)
        return f"there is {unseen}" if unseen else ""

    def _unsound(self, check_id: str, nodeid: str, records: Sequence[Record]) -> tuple[Status, str] | None:
        """Why the records of an item are no evidence; None when they are."""
        if nodeid not in self._bundle.seals:
            lost = next((record.note for record in records if record.status is Status.MISSING), "")
            return Status.MISSING, lost or f"{nodeid} never reported"
        fault = broken(self._bundle.seals[nodeid], records)
        if fault is not None:
            return Status.INVALID, fault
        if self._bundle.seals[nodeid].check != check_id:
            return Status.INVALID, f"{nodeid} was sealed for {self._bundle.seals[nodeid].check}"
        twice = repeated(records)
        if twice is not None:
            return Status.INVALID, twice
        for record in records:
            fault = self._misplaced(check_id, record) or contradiction(record, self._thresholds)
            if fault is not None:
                return Status.INVALID, fault
        return None

    def _seeds_without_evidence(self, check: Check, judged: Sequence[Record]) -> str:
        """Which seeds a check on the main trainings needs and has no record of: a claim made by fewer. Empty: none."""
        if MAIN_TRAININGS not in check.trainings:
            return ""
        demanded = sorted(self._bundle.seeds)[:1] if check.seeds == "first" else self._bundle.seeds
        seen = {seed for record in judged for seed in record.seeds}
        unseen = sorted(set(demanded) - seen)
        return f"no record of seed {', '.join(map(str, unseen))}" if unseen else ""

    def _misplaced(self, check_id: str, record: Record) -> str | None:
        if (record.check, record.model, record.scale) == (check_id, self._bundle.model, self._bundle.scale):
            return None
        return f"{check_id} {label(record)}: was measured for {record.check}, {record.model} at {record.scale}"

    def _status(self, check: Check, judged: Sequence[Record]) -> tuple[Status, str]:
        status = worst(record.status for record in judged)
        decisive = next((record for record in judged if record.status is status), None)
        why = "nothing was judged" if decisive is None else _what(decisive)
        unsupported = [r for r in judged if r.status is Status.UNSUPPORTED and not self._is_excused(r)]
        if unsupported and SEVERITY.index(status) > SEVERITY.index(Status.MISSING):
            return Status.UNSUPPORTED, _what(unsupported[0])
        if status is Status.NA and not self._may_be_na(check):
            return Status.MISSING, f"{why}; checks.toml does not exempt this subject from it"
        return status, "" if status is Status.PASS else why

    def _is_excused(self, record: Record) -> bool:
        """Whether a kernel that does not run here is none of this decision's business: on a CPU, at a small scale."""
        by_design = self._bundle.scope == "cpu_ref" and self._table.scale(self._bundle.scale).cpu_ref
        return by_design and record.status is Status.UNSUPPORTED

    def _may_be_na(self, check: Check) -> bool:
        return bool(check.exempt) or (check.branches == "hybrid" and self._bundle.branches < 2)


def _what(record: Record) -> str:
    value = f" = {format_number(record.value)}" if record.value is not None else ""
    return ": ".join(part for part in (f"{label(record)}{value}", record.note) if part)


# ---- scores and gates ------------------------------------------------------------------------------------------------


def _score(
    name: Category, settled: Mapping[str, Settled], bundle: Bundle, table: EvidenceTable, checks: Checks
) -> CategoryScore:
    own = [check for check in settled if table.category(check, checks) == name]
    weight = table.matrix.weights[name]
    absent = [f"{check} {settled[check].status}: {settled[check].why}" for check in own if _is_absent(settled[check])]
    if absent or not own:
        why = f"no score: {len(absent)} of {len(own)} checks gave no evidence"
        return CategoryScore(score=None, weight=weight, why=why, unmet=absent, checks=own)
    score, why, unmet = 0, "not even the first rung holds", list[str]()
    for rung in table.rungs(name):
        answers = [_unmet(requirement, settled, bundle) for requirement in rung.requires]
        lacking = [answer.text for answer in answers if answer is not None]
        if any(answer is not None and answer.unknown for answer in answers):
            return CategoryScore(
                score=None, weight=weight, why=f"no score: unknown whether: {rung.says}", unmet=lacking, checks=own
            )
        if lacking:
            unmet = [f"for {score + 1}: {text}" for text in lacking]
            break
        score, why = score + 1, rung.says
    cap = table.matrix.one_seed_cap
    if score > cap and len(set(bundle.seeds)) < 2:
        score, unmet = cap, [f"for {cap + 1}: claims from a single seed score at most {cap}"]
    return CategoryScore(score=score, weight=weight, why=why, unmet=unmet, checks=own)


@dataclass(frozen=True)
class _Unmet:
    text: str
    unknown: bool = False


def _unmet(requirement: Requirement, settled: Mapping[str, Settled], bundle: Bundle) -> _Unmet | None:
    """Why a requirement does not hold; None when it does."""
    check = requirement.check
    if requirement.status is not None:
        status = settled[check].status if check in settled else Status.MISSING
        if at_least(status, requirement.status):
            return None
        return _Unmet(f"{check} ended {status}, demanded {requirement.condition}", unknown=status in NO_EVIDENCE)
    records = [record for record in bundle.records if record.check == check and record.metric == requirement.metric]
    numbers = [_number(record, requirement.end) for record in records]
    if not numbers:
        return _Unmet(f"nothing reported {requirement.what}", unknown=True)
    missed = [number for number in numbers if not requirement.holds(number)]
    if not missed:
        return None
    return _Unmet(f"{requirement.what} is {format_number(missed[0])}, demanded {requirement.condition}")


def _number(record: Record, end: Literal["value", "low", "high"]) -> float:
    if end == "value":
        return math.nan if record.value is None else record.value
    return math.nan if record.ci is None else record.ci[0 if end == "low" else 1]


def _gate(gate_id: str, title: str, names: Sequence[str], settled: Mapping[str, Settled]) -> HardGate:
    demanded = [settled[check] for check in names if check in settled]
    status = worst(each.status for each in demanded)
    lacking = [each for each in demanded if each.status is not Status.PASS and each.status is not Status.NA]
    lacking.sort(key=lambda each: SEVERITY.index(each.status))
    why = "; ".join(f"{each.check} {each.status}" for each in lacking)
    return HardGate(id=gate_id, title=title, status=status, checks=[each.check for each in demanded], why=why)


def _is_absent(settled: Settled) -> bool:
    return settled.status in NO_EVIDENCE


# ---- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(
    bundle: Bundle,
    table: EvidenceTable,
    settled: Mapping[str, Settled],
    scores: Mapping[Category, CategoryScore],
    gates: Sequence[HardGate],
    total_range: tuple[float, float],
) -> tuple[Verdict, list[str]]:
    """The worst that anything asks for, and every reason that keeps it from being better."""
    low, high = total_range
    matrix = table.matrix
    found: list[tuple[Verdict, str]] = []
    for gate in gates:
        if gate.status is Status.FAIL:
            found.append((Verdict.NO_GO, f"hard gate {gate.id} ({gate.title}) FAILs: {gate.why}"))
        elif gate.status is Status.WARN:
            found.append((Verdict.CAUTION, f"hard gate {gate.id} ({gate.title}) WARNs: {gate.why}"))
    in_gates = {check for gate in gates for check in gate.checks}
    for each in settled.values():
        if each.status is Status.FAIL and each.check not in in_gates:
            found.append((Verdict.HOLD, f"{each.check} FAILs: {each.why}"))
        elif each.waived:
            found.append((Verdict.CAUTION, f"{each.check} FAILs and is waived: {each.why}"))
    for name, score in scores.items():
        if score.score == 0:
            found.append((Verdict.HOLD, f"{name} scores 0: {'; '.join(score.unmet)}"))
    if high < matrix.caution:
        found.append((Verdict.HOLD, f"the total is {_total(low, high)}, below {matrix.caution:g}"))
    elif low == high and high < matrix.go:
        found.append((Verdict.CAUTION, f"the total is {_total(low, high)}, below {matrix.go:g}"))
    found += [(Verdict.INCOMPLETE, text) for text in _gaps(bundle, table, settled, scores)]
    sides = disagreement(bundle.records)
    if sides is not None:
        found.append((Verdict.CAUTION, sides))
    order = (Verdict.NO_GO, Verdict.HOLD, Verdict.INCOMPLETE, Verdict.CAUTION)
    found.sort(key=lambda entry: order.index(entry[0]))
    verdict = found[0][0] if found else Verdict.GO
    return verdict, [f"{asks}: {text}" for asks, text in found]


def _gaps(
    bundle: Bundle, table: EvidenceTable, settled: Mapping[str, Settled], scores: Mapping[Category, CategoryScore]
) -> list[str]:
    """What is demanded and not there."""
    row = table.scale(bundle.scale)
    gaps = []
    if bundle.interrupted:
        gaps.append("the session was cut short")
    if bundle.scope == "cpu_ref" and not row.cpu_ref:
        gaps.append(f"{bundle.scale} needs a GPU: on a CPU the kernels that would be scaled up do not run")
    if bundle.embedded_corpus and bundle.scale != SMOKE_SCALE:
        gaps.append(f"the embedded corpus is smoke evidence at {bundle.scale}; give --corpus")
    changed = [key for key in bundle.overrides if key not in table.table.may_set]
    if changed:
        gaps.append(f"the preset was changed where the evidence must not: {', '.join(changed)}")
    if len(set(bundle.seeds)) < row.seeds:
        gaps.append(f"{len(set(bundle.seeds))} of {row.seeds} seeds")
    gaps += [f"{each.check} {each.status}: {each.why}" for each in settled.values() if _is_absent(each)]
    silent = [name for name, score in scores.items() if score.score is None and not _names_absent(score, settled)]
    return gaps + [f"{name} has no score: {'; '.join(scores[name].unmet)}" for name in silent]


def _names_absent(score: CategoryScore, settled: Mapping[str, Settled]) -> bool:
    return any(_is_absent(settled[check]) for check in score.checks)


def _total(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
