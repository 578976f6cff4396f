"""The summary at the end of a run: one verdict line, then the worst check first."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.checks import Checks
from harness.comparison import Comparison
from harness.graduation.matrix import CategoryScore
from harness.records import Status
from harness.report import DECISION_FILES, STATEFULNESS_FILES, CheckResult, Report
from harness.statefulness import in_brief, statefulness
from harness.wording import format_band, format_measurement, format_number, label

STYLES = {
    "PASS": "green",
    "WARN": "yellow",
    "FAIL": "bold red",
    "INVALID": "bold magenta",
    "MISSING": "bold magenta",
    "INCOMPLETE": "bold magenta",
    "GO": "bold green",
    "CAUTION": "bold yellow",
    "HOLD": "bold red",
    "NO-GO": "bold red",
}
MOST_CHANGES = 8
MOST_REASONS = 8
WITH_ADVICE = (Status.FAIL, Status.INVALID, Status.MISSING, Status.WARN)


def write_summary(reporter: pytest.TerminalReporter, report: Report, checks: Checks, directory: Path) -> None:
    """Write the summary of a report, as wide as the terminal, coloured only where pytest colours."""
    console = Console(
        file=io.StringIO(),
        force_terminal=reporter.hasmarkup,
        no_color=not reporter.hasmarkup,
        width=reporter._tw.fullwidth,
        legacy_windows=False,
        highlight=False,
    )
    console.print(Text(report.headline, style=STYLES.get(report.outcome, "bold")))
    for stamp in report.stamps:
        console.print(Text(f"  {stamp}", style="dim"))
    if report.kind == "graduation":
        _decide(console, report)
    console.print(_table(report))
    for result in report.checks:
        if result.status in WITH_ADVICE:
            _advise(console, result)
    if report.comparison:
        _compare(console, report.comparison)
    if STATEFULNESS_FILES[0] in report.documents:
        for line in in_brief(statefulness(report, checks)):
            console.print(Text(line))
        console.print(f"state   {directory / STATEFULNESS_FILES[0]}", soft_wrap=True)
    console.print(f"report  {directory / DECISION_FILES[0]}   ({report.provenance['wall_s']:.0f} s)", soft_wrap=True)
    reporter.section("groundthink")
    assert isinstance(console.file, io.StringIO)
    reporter.write(console.file.getvalue())


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("worst record", overflow="fold")
    table.add_column("value [interval]", overflow="fold")
    table.add_column("pass", overflow="fold")
    table.add_column("margin", no_wrap=True)
    for result in report.checks:
        worst = result.worst
        measured = worst is not None and worst.value is not None
        table.add_row(
            result.id,
            Text(result.status, style=STYLES.get(result.status, "dim")),
            Text(label(worst) if worst and worst.metric else (worst.note if worst else "")),
            Text(format_measurement(worst) if worst and measured else ""),
            Text(_limit(worst.threshold.pass_band, worst.threshold.calibrated) if worst and worst.threshold else ""),
            result.margin,
        )
    return table


def _decide(console: Console, report: Report) -> None:
    """The matrix, the hard gates and the reasons: why the verdict is no better."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("category", "score", "weight"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, category in report.categories.items():
        score = "none" if category.score is None else f"{category.score} of 3"
        style = "bold magenta" if category.score is None else "bold red" if category.score == 0 else ""
        table.add_row(name, Text(score, style=style), f"{category.weight:g}", Text(_because(category)))
    console.print(table)
    for gate in report.hard_gates:
        why = f": {gate.why}" if gate.why else ""
        console.print(
            Text(f"{gate.id}  ").append(gate.status, STYLES.get(gate.status, "dim")).append(f"  {gate.title}{why}")
        )
    for reason in report.reasons[:MOST_REASONS]:
        console.print(Text(f"  {reason}"))
    if len(report.reasons) > MOST_REASONS:
        console.print(f"  and {len(report.reasons) - MOST_REASONS} further reasons: see the report")


def _because(category: CategoryScore) -> str:
    lacks = "; ".join(category.unmet[:2])
    more = f"; and {len(category.unmet) - 2} more" if len(category.unmet) > 2 else ""
    return f"{category.why}. {lacks}{more}" if lacks else category.why


def _limit(band: tuple[float, float], calibrated: bool) -> str:
    return format_band(band) if calibrated else f"{format_band(band)} (uncalibrated)"


def _advise(console: Console, result: CheckResult) -> None:
    console.print(Text(f"{result.id}  again  {result.rerun}"), soft_wrap=True)


def _compare(console: Console, comparison: Comparison) -> None:
    """What changed since the baseline, the largest first."""
    console.print(Text(f"since {comparison.baseline}: {comparison.summary}"), soft_wrap=True)
    for remark in comparison.remarks:
        console.print(Text(f"  {remark}", style="dim"))
    claims = comparison.those("changed")
    if not claims:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("changed", "now", "then", "by", "noises", ""):
        table.add_column(column, overflow="fold", no_wrap=column not in ("changed",))
    for change in claims[:MOST_CHANGES]:
        now, then = format_number(change.now.value), format_number(change.then.value)
        noises = f"{change.in_noises:.1f}" if change.noise is not None else "exact"
        style = {"better": "green", "worse": "yellow"}.get(change.tendency, "")
        row = (change.now.where, now, then, f"{change.delta:+.3g}", noises, Text(change.tendency, style=style))
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)
