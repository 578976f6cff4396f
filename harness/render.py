"""Writes a report into its directory: JSON for programs, Markdown and one self-contained HTML file for people."""

import base64
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.check_rows import check_rows
from harness.comparison import Change, Metric
from harness.drawing import draw_all
from harness.errors import HarnessError
from harness.figures import LineFigure, Passage, TextFigure, describe_figure, figure_from_json
from harness.interactive import Chart, content_hash, line_chart, runtime, training_charts
from harness.items import ITEMS_FILE, items_text
from harness.plots import plot_runs
from harness.ranking import badness
from harness.records import Limits, Record
from harness.report import (
    GATE_FILES,
    METRICS_FILE,
    REPORT_FILE,
    STATE_SUITES,
    STATEFULNESS_FILES,
    PublishedFigure,
    Report,
    RunFacts,
    build_report,
)
from harness.statefulness import statefulness
from harness.tables import Tables
from harness.wording import format_band, format_measurement, format_value, label, markdown_cell

TEMPLATES = Path(__file__).parents[1] / "reports"
# documents that share one
TEMPLATE_OF = dict.fromkeys(GATE_FILES, "validation_gate.md")


@dataclass(frozen=True)
class Pictures:
    """What the documents show besides words.

    images     PNG in base64, by path beside the report
    trainings  charts of the trainings; figures: charts of published figures by name. Empty in a suite run: it has PNGs
    """

    images: Mapping[str, str]
    trainings: Sequence[Chart] = ()
    figures: Mapping[str, Chart] = field(default_factory=dict)


def write_report(facts: RunFacts, tables: Tables, directory: Path) -> Report:
    """Build the report and write it: report.json, documents, numbers for a later run, the tables in force, plots/."""
    directory.mkdir(parents=True, exist_ok=True)
    curves, remarks = plot_runs(facts.runs, directory / "plots")
    figures, undrawn = _draw(facts.figures, directory)
    plots = [path.relative_to(directory).as_posix() for path in curves]
    report = build_report(facts, tables, plots, [*remarks, *undrawn], figures)
    (directory / REPORT_FILE).write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (directory / METRICS_FILE).write_text(report.metrics.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (directory / ITEMS_FILE).write_text(items_text(facts.items), encoding="utf-8")
    for path, name in tables.files.items():
        shutil.copyfile(path, directory / name)
    for name in (*STATEFULNESS_FILES, *GATE_FILES):
        # of an earlier run into the same directory, which may have looked into the state or have said GO
        (directory / name).unlink(missing_ok=True)
    drawn = [*plots, *(figure.image for figure in figures if figure.image)]
    images = {name: base64.b64encode((directory / name).read_bytes()).decode() for name in drawn}
    pictures = Pictures(images, *_charts(facts, report, tables))
    for name in report.documents:
        (directory / name).write_text(render(name, report, tables, pictures), encoding="utf-8")
    return report


def _charts(facts: RunFacts, report: Report, tables: Tables) -> tuple[list[Chart], dict[str, Chart]]:
    """The interactive charts of a graduation: of its trainings, and of the figures that its decision shows."""
    if not facts.graduates:
        return [], {}
    shown = {figure.name for figure in report.figures if figure.image and not _is_of_state(figure, tables)}
    published = {entry["name"]: figure_from_json(entry["figure"]) for entry in facts.figures if entry["name"] in shown}
    charts = {name: line_chart(figure) for name, figure in published.items() if isinstance(figure, LineFigure)}
    return training_charts(facts.runs), charts


def _is_of_state(figure: PublishedFigure, tables: Tables) -> bool:
    """Whether a figure is shown on the statefulness page and not in the decision."""
    return tables.checks[figure.check].suite in STATE_SUITES


def _draw(published: Sequence[Mapping[str, str]], directory: Path) -> tuple[list[PublishedFigure], list[str]]:
    """Every published figure as data and, unless it is text, as PNG; and a remark where that cannot be drawn."""
    figures, to_draw = [], {}
    for entry in published:
        figure, name = figure_from_json(entry["figure"]), entry["name"]
        image, data = f"plots/{name}.png", f"plots/{name}.json"
        (directory / data).parent.mkdir(exist_ok=True)
        (directory / data).write_text(entry["figure"] + "\n", encoding="utf-8")
        passages: list[Passage] = []
        if isinstance(figure, TextFigure):
            passages, image = figure.passages, ""
        else:
            to_draw[directory / image] = entry["figure"]
        figures.append(
            PublishedFigure(
                name=name, check=entry["check"], title=figure.title, text=describe_figure(figure), image=image,
                data=data, passages=passages,
            )
        )  # fmt: skip
    undrawn = {path: remark for path, remark in draw_all(to_draw).items() if remark}
    remarks = []
    for index, shown in enumerate(figures):
        remark = undrawn.get(directory / shown.image)
        if remark is not None:
            figures[index] = shown.model_copy(update={"image": ""})
            remarks.append(f"figure {shown.name} is not drawn: {remark}")
    return figures, remarks


def render(name: str, report: Report, tables: Tables, pictures: Pictures) -> str:
    """One document from its template in ``reports/``. HTML is escaped, and loads nothing from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    file = f"{TEMPLATE_OF.get(name, name)}.j2"
    if not (TEMPLATES / file).exists():
        raise HarnessError(f"no template {TEMPLATES / file}; run from a checkout of the project, which holds reports/")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    template = environment.get_template(file)
    if name in STATEFULNESS_FILES:
        page = statefulness(report, tables.checks)
        return template.render(report=report, checks=tables.checks, page=page, images=pictures.images, script="")
    elsewhere = {figure.image for figure in report.figures if _is_of_state(figure, tables)}
    return template.render(
        report=report,
        checks=tables.checks,
        matrix=tables.evidence.matrix,
        rows=check_rows(report, tables),
        records=_records_by_check(report),
        limits=_limits(report),
        hashes=_hashes(report),
        provenance=report.provenance | {"content_sha256": report.content_sha256},
        images={path: image for path, image in pictures.images.items() if path not in elsewhere},
        charts=pictures.trainings,
        figure_charts=pictures.figures,
        script=runtime() if pictures.trainings or pictures.figures else "",
    )


def _limits(report: Report) -> dict[str, Limits]:
    """The limits that something was judged by, by ``CHECK.metric``."""
    judged = {f"{record.check}.{record.metric}": record.threshold for record in report.records}
    return {name: limits for name, limits in sorted(judged.items()) if limits is not None}


def _hashes(report: Report) -> dict[str, Any]:
    """What decides whether another run is the same one: commit, tables, data, weights, and the report itself."""
    tables = {name: value for name, value in report.provenance.items() if name == "git" or name.endswith("_sha256")}
    kinds = ("corpus_sha256", "tokenizer_sha256", "config_sha256", "checkpoint_sha256")
    seen = {kind: sorted({getattr(record, kind) for record in report.records} - {""}) for kind in kinds}
    found = {kind: values for kind, values in seen.items() if values}
    return {**tables, **found, "content_sha256": report.content_sha256}


def _records_by_check(report: Report) -> dict[str, list[Record]]:
    grouped: dict[str, list[Record]] = {result.id: [] for result in report.checks}
    for record in sorted(report.records, key=badness):
        # of a check that was not planned there may be strays: the audit names them
        grouped.setdefault(record.check, []).append(record)
    return grouped


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
    "cell": markdown_cell,
    "plain": _plain,
    "measured": _measured,
    "noises": _noises,
    "content_hash": content_hash,
}
