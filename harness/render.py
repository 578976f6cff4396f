"""Writes a report into its directory: JSON for programs, Markdown and one self-contained HTML file for people."""

import base64
import shutil
from pathlib import Path
from typing import Any

from harness.checks import Checks
from harness.errors import HarnessError
from harness.plots import plot_runs
from harness.records import Record
from harness.report import (
    Report,
    RunFacts,
    badness,
    build_report,
    format_band,
    format_measurement,
    label,
)
from harness.thresholds import Thresholds

TEMPLATES = Path(__file__).parents[1] / "reports"
REPORT_FILE = "report.json"
THRESHOLDS_FILE = "thresholds.toml"


def write_report(facts: RunFacts, checks: Checks, thresholds: Thresholds, directory: Path) -> Report:
    """Build the report and write report.json, decision.md, decision.html, thresholds.toml and plots/."""
    directory.mkdir(parents=True, exist_ok=True)
    figures, remarks = plot_runs(facts.runs, directory / "plots")
    plots = [path.relative_to(directory).as_posix() for path in figures]
    report = build_report(facts, checks, plots, remarks)
    (directory / REPORT_FILE).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(thresholds.path, directory / THRESHOLDS_FILE)
    images = {name: base64.b64encode((directory / name).read_bytes()).decode() for name in plots}
    for name in ("decision.md", "decision.html"):
        (directory / name).write_text(render(name, report, checks, images), encoding="utf-8")
    return report


def render(name: str, report: Report, checks: Checks, images: dict[str, str]) -> str:
    """One document from its template ``reports/NAME.j2``; images are base64 PNG by path. HTML is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not (TEMPLATES / f"{name}.j2").exists():
        raise HarnessError(
            f"no template {TEMPLATES / name}.j2; run from a checkout of the project, which holds reports/"
        )
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(band=format_band, measurement=format_measurement, label=label, cell=_cell, plain=_plain)
    return environment.get_template(f"{name}.j2").render(
        report=report, checks=checks, records=_records_by_check(report), images=images
    )


def _records_by_check(report: Report) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {result.id: [] for result in report.checks}
    for record in sorted(report.records, key=badness):
        grouped[record.check].append(record)
    return grouped


def _cell(text: Any) -> str:
    """Text inside one cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _plain(value: Any) -> str:
    """A value of the provenance in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(inner) for inner in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)
