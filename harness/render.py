"""Writes a report into its directory: JSON for programs, Markdown and one self-contained HTML file for people."""

import base64
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checks import Checks
from harness.comparison import Change, Metric
from harness.errors import HarnessError
from harness.figures import FigureError, describe_figure, draw_figure, figure_from_json
from harness.plots import plot_runs
from harness.records import Record
from harness.report import (
    METRICS_FILE,
    REPORT_FILE,
    STATE_SUITES,
    STATEFULNESS_FILES,
    THRESHOLDS_FILE,
    PublishedFigure,
    Report,
    RunFacts,
    badness,
    build_report,
)
from harness.statefulness import statefulness
from harness.thresholds import Thresholds
from harness.wording import format_band, format_measurement, format_value, label

TEMPLATES = Path(__file__).parents[1] / "reports"


def write_report(facts: RunFacts, checks: Checks, thresholds: Thresholds, directory: Path) -> Report:
    """Build the report and write report.json, its documents, baseline_metrics.json, thresholds.toml and plots/."""
    directory.mkdir(parents=True, exist_ok=True)
    curves, remarks = plot_runs(facts.runs, directory / "plots")
    figures, undrawn = _draw(facts.figures, directory)
    plots = [path.relative_to(directory).as_posix() for path in curves]
    report = build_report(facts, checks, plots, [*remarks, *undrawn], figures)
    (directory / REPORT_FILE).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (directory / METRICS_FILE).write_text(report.metrics.model_dump_json(indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(thresholds.path, directory / THRESHOLDS_FILE)
    for name in STATEFULNESS_FILES:
        # of an earlier run into the same directory, which may have looked into the state where this one did not
        (directory / name).unlink(missing_ok=True)
    drawn = [*plots, *(figure.image for figure in figures if figure.image)]
    images = {name: base64.b64encode((directory / name).read_bytes()).decode() for name in drawn}
    for name in report.documents:
        (directory / name).write_text(render(name, report, checks, images), encoding="utf-8")
    return report


def _draw(published: Sequence[Mapping[str, str]], directory: Path) -> tuple[list[PublishedFigure], list[str]]:
    """Every published figure as numbers and, where it can be drawn, as PNG; and a remark where it cannot."""
    figures, remarks = [], []
    for entry in published:
        figure, name = figure_from_json(entry["figure"]), entry["name"]
        image, data = f"plots/{name}.png", f"plots/{name}.json"
        (directory / data).parent.mkdir(exist_ok=True)
        (directory / data).write_text(entry["figure"] + "\n", encoding="utf-8")
        try:
            draw_figure(figure, directory / image)
        except FigureError as error:
            remarks.append(f"figure {name} is not drawn: {error}")
            image = ""
        shown = {"title": figure.title, "text": describe_figure(figure)}
        figures.append(PublishedFigure(name=name, check=entry["check"], image=image, data=data, **shown))
    return figures, remarks


def render(name: str, report: Report, checks: Checks, images: Mapping[str, str]) -> str:
    """One document from its template ``reports/NAME.j2``; images are base64 PNG by path. HTML is escaped.

    Figures of the state suites are on the statefulness page and not in the decision.
    """
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
    environment.filters.update(FILTERS)
    template = environment.get_template(f"{name}.j2")
    if name in STATEFULNESS_FILES:
        return template.render(report=report, checks=checks, page=statefulness(report, checks), images=images)
    elsewhere = {figure.image for figure in report.figures if checks[figure.check].suite in STATE_SUITES}
    shown = {path: image for path, image in images.items() if path not in elsewhere}
    return template.render(report=report, checks=checks, records=_records_by_check(report), images=shown)


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


def _measured(metric: Metric) -> str:
    """A number of a baseline with its unit and interval."""
    return format_value(metric.value, metric.unit, metric.ci)


def _noises(change: Change) -> str:
    """The size of a change in standard errors of its noise."""
    return "exact" if change.noise is None else f"{change.in_noises:.1f}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "band": format_band,
    "measurement": format_measurement,
    "label": label,
    "cell": _cell,
    "plain": _plain,
    "measured": _measured,
    "noises": _noises,
}
