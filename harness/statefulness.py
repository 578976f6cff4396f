"""What the statefulness page says: which branch carries what, how long, and where it is weak. Made of records alone."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.checks import Checks
from harness.records import SEVERITY, Record
from harness.report import STATE_SUITES, CheckResult, PublishedFigure, Report
from harness.state_card import Card, branch_card, weak_first
from harness.state_evidence import (
    WITHOUT_NUMBER,
    Evidence,
    Grid,
    Row,
    by_seed,
    mean,
    say,
    times,
)
from harness.witnesses import JUDGED_HORIZON, Witness, headline, witnesses
from harness.wording import format_number

# checks whose records name the branches that have a state that lasts; the first that ran decides
_NAMING = ("D3", "S4", "EVOLUTION", "COUPLING", "INFO", "D2", "S2", "S1")
_BY_THEME = ("D3", "INFO", "COUPLING", "BALANCE", "EVOLUTION", "D4", "UCW", "MEMORY", "D1", "D2", "S4")


@dataclass(frozen=True)
class Part:
    """One part of the state-health score: between 0 and 1, with the reading it was made of."""

    name: str
    score: float
    reading: str


@dataclass(frozen=True)
class Page:
    """Everything on the page, in the order of reading."""

    title: str
    headline: list[str]
    branches: list[str]
    witnesses: list[Witness]
    cards: list[Card]
    score: Row
    parts: list[Part]
    context: list[Row]
    memory: Grid
    chance: str
    why_not_without: str
    why_not_memory: str
    together: list[Row]
    balance: list[Row]
    weak: list[Record]
    figures: list[PublishedFigure]
    trainings: list[str]
    missing: list[tuple[str, str]]
    checks: list[CheckResult]


def statefulness(report: Report, checks: Checks) -> Page:
    """The page of a report that holds checks of the state suites."""
    evidence = Evidence(report.records)
    branches = branch_names(report.records)
    cards = [branch_card(evidence, branch, branches) for branch in branches]
    found = witnesses(evidence, branches)
    score = evidence.row("state-health score", "SHS.state_health_score")
    context, balance = _context(evidence), _balance(evidence, branches)
    together = _together(evidence, branches)
    rows = [score, *context, *together, *balance, *(row for card in cards for row in (*card.does, *card.remembers))]
    return Page(
        title=f"What {report.model} keeps in its state",
        headline=headline(evidence, found, branches),
        branches=branches,
        witnesses=found,
        cards=cards,
        score=score,
        parts=_parts(evidence),
        context=context,
        memory=_memory(evidence, branches),
        chance=format_number(next((record.null_value for record in evidence.find("MEMORY.accuracy")), None)),
        why_not_without=evidence.why_not("D3.loss_delta"),
        why_not_memory=evidence.why_not("MEMORY.accuracy"),
        together=together,
        balance=balance,
        weak=weak_first(
            record for record in report.records if _about_state(record, checks) and record.branch not in branches
        ),
        figures=_in_order(report.figures, checks),
        trainings=[plot for plot in report.plots if plot.endswith("-state.png")],
        missing=_missing(report, checks, rows, found),
        checks=[result for result in report.checks if checks[result.id].suite in STATE_SUITES],
    )


def branch_names(records: Iterable[Record]) -> list[str]:
    """The branches that have a state, in order of appearance, by the first check of ``_NAMING`` that names any."""
    named = [record for record in records if record.branch]
    for check in _NAMING:
        own = [record.branch for record in named if record.check == check and record.branch]
        if own:
            return list(dict.fromkeys(own))
    return []


def _context(evidence: Evidence) -> list[Row]:
    rows = [
        evidence.row("loss saved by a context of 128 over one of 8 tokens", "D4.long_range_gain"),
        evidence.row("the same, of the loss at 8 tokens", "D4.long_range_benefit"),
        evidence.row("the same, of words that were said before", "D4.key_token_gain"),
    ]
    source = "D4.degradation"
    found = evidence.find(source)
    rows += [
        evidence.row(f"perplexity at {case} over the trained length's", source, evidence.find(source, case=case))
        for case in dict.fromkeys(record.case for record in found)
    ]
    if not found:
        rows.append(evidence.row("perplexity past the trained length", source, []))
    useful = evidence.find("UCW.useful_context")
    return [*rows, evidence.row("useful context", "UCW.useful_context", useful)] if useful else rows


def _memory(evidence: Evidence, branches: Sequence[str]) -> Grid:
    """What a linear reader recalls at its best layer, by the tokens since it was said; the chance beside it."""
    source = "MEMORY.accuracy"
    found = evidence.find(source)
    cases = sorted(dict.fromkeys(record.case for record in found), key=_natural)

    def best(case: str) -> Callable[[str], list[Record]]:
        def pick(branch: str) -> list[Record]:
            own = [record for record in found if record.case == case and record.branch == branch]
            # by the mean over seeds, so that no seed chooses a layer of its own
            layers = {record.layer for record in own}
            return max(([r for r in own if r.layer == layer] for layer in layers), key=mean, default=[])

        return pick

    return evidence.grid({branch: branch for branch in branches}, [(case, source, best(case)) for case in cases], say)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _together(evidence: Evidence, branches: Sequence[str]) -> list[Row]:
    if len(branches) < 2:
        return [evidence.row("information of the state on the next token", "INFO.total")]
    both = f"{'+'.join(branches)}, resample, long, {JUDGED_HORIZON} tokens"
    return [
        evidence.row("information of all states on the next token", "INFO.total"),
        evidence.row("of it, only in both together (synergy)", "INFO.synergy"),
        evidence.row(
            "loss when every state is another text's", "D3.loss_delta", evidence.find("D3.loss_delta", case=both)
        ),
        evidence.row("of it, beyond the sum of each alone", "D3.interaction"),
        evidence.row("smaller share of the loss that the branches cost", "D3.smaller_loss_share"),
        evidence.row("larger over smaller first-order effect", "COUPLING.ratio"),
    ]


def in_brief(page: Page) -> list[str]:
    """The page in a few lines for a terminal: which branch carries what, and the two ratios the project began with."""
    said = [row for row in page.balance if row.value and row.source != "BALANCE.rescaling_keeps_the_function"]
    return [*page.headline[:1], *(f"{row.what}: {row.value}" for row in said)]


def _balance(evidence: Evidence, branches: Sequence[str]) -> list[Row]:
    if len(branches) < 2:
        return []

    def raw(what: str, metric: str) -> Row:
        """A ratio of the trained model: that of the untrained one has a case of its own."""
        return evidence.row(what, f"BALANCE.{metric}", evidence.find(f"BALANCE.{metric}", case=""), times)

    return [
        raw("raw type A, variance of outputs (71x then)", "type_a_raw_ratio"),
        evidence.row("type A, smaller share of what is written", "BALANCE.smaller_write_share"),
        raw("raw type B, variance of states (108,583x then)", "type_b_raw_ratio"),
        raw("raw type B of the same function in other units", "type_b_raw_ratio_rescaled"),
        evidence.row("change of the logits by those units", "BALANCE.rescaling_keeps_the_function"),
        evidence.row("type B, larger over smaller effect on the loss", "COUPLING.ratio"),
    ]


def _parts(evidence: Evidence) -> list[Part]:
    """The parts of the score, weakest first."""
    found = evidence.find("SHS.subscore")
    by_name = {case: [r for r in found if r.case == case] for case in dict.fromkeys(r.case for r in found)}
    parts = [
        Part(name, mean(by_seed(own)), own[0].note.split(";")[0] if len(own) == 1 else say(own))
        for name, own in by_name.items()
    ]
    return sorted(parts, key=lambda part: part.score)


def _about_state(record: Record, checks: Checks) -> bool:
    return checks[record.check].suite in STATE_SUITES


def _in_order(figures: Iterable[PublishedFigure], checks: Checks) -> list[PublishedFigure]:
    """Figures of the state suites by theme: what is heard, how long, in which shape."""
    own = [figure for figure in figures if figure.image and checks[figure.check].suite in STATE_SUITES]
    theme = {check: place for place, check in enumerate(_BY_THEME)}
    return sorted(own, key=lambda figure: (theme.get(figure.check, len(theme)), figure.check, figure.name))


def _missing(report: Report, checks: Checks, rows: Iterable[Row], found: Iterable[Witness]) -> list[tuple[str, str]]:
    """``(what, why)`` of everything that the page would have shown, each once; then records without a verdict."""
    lacking = [(row.what, row.missing) for row in rows if row.missing]
    lacking += [(witness.name.lower(), witness.missing) for witness in found if witness.missing]
    silent = sorted(
        (record for record in report.records if record.status in WITHOUT_NUMBER and not record.info),
        key=lambda record: SEVERITY.index(record.status),
    )
    lacking += [
        (f"{record.check} {record.nodeid.rpartition('::')[2]}".strip(), f"{record.status}: {record.note}")
        for record in silent
        if _about_state(record, checks)
    ]
    lacking += [
        (row.check, row.reason)
        for row in report.not_run
        # a demanded check that nothing measures yet is in no suite
        if not row.nodeid and row.check in checks and checks[row.check].suite in STATE_SUITES
    ]
    lacking += [
        (figure.title, "could not be drawn") for figure in report.figures if not (figure.image or figure.passages)
    ]
    return list(dict.fromkeys(lacking))
