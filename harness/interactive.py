"""Figures as interactive charts: Vega-Lite specifications, and the one script that draws all of them in a page.

Points of a line show their numbers; a click on an entry of the legend leaves that line alone. The page needs nothing
from elsewhere: the script holds the whole of Vega, and a specification holds its numbers. Altair is imported when a
chart is made.
"""

import base64
import hashlib
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.figures import COLOURS, LineFigure, Point, describe_figure, drawable, left_out_remark, short_number
from harness.training_figures import LossFigure, training_figures

if TYPE_CHECKING:
    import altair as alt

MOST_POINTS = 500
# of a long line, so many points answer to the mouse: each of them is a shape of its own in the page
MOST_ANSWERS = 100
# a line of up to so many points shows them
MARKED = 40
HEIGHT = 240
# as harness.figures.DASHES, in pixels
STROKES = ([1, 0], [6, 3], [2, 2], [6, 2, 1, 2])
# entries of the legend beside each other: labels as long as this fit a telephone twice
SHORT_LABEL = 14
# of an axis, a line: as many fit a telephone
LETTERS_OF_TITLE = 44

Specification = dict[str, Any]


class Row(NamedTuple):
    """A point of a chart. answers: whether it tells its numbers to the mouse."""

    x: float
    y: float | None
    line: str
    what: str
    answers: bool


@dataclass(frozen=True)
class Chart:
    """A figure as charts, one a panel. text: what it shows, in words, and what could not be drawn."""

    title: str
    text: str
    panels: list[Specification]


def line_chart(figure: LineFigure) -> Chart:
    """A figure that a check published. Values that cannot be drawn leave a gap and are counted in the text."""
    points = [point for lines in figure.panels.values() for line in lines.values() for point in line]
    shown = drawable(points, figure)
    panels = []
    for title, lines in figure.panels.items():
        rows = [row for label, line in lines.items() for row in _rows(label, "", line, figure)]
        # on axes that hold all of the figure: its panels are to be compared
        # long lines are noisy ones, that must not hide each other
        opacity = 1.0 if max(map(len, lines.values()), default=0) <= MOST_ANSWERS else 0.6
        panels.append(_finished([_lines(figure, rows, shown, opacity), _answers(figure, rows)], title))
    text = f"{describe_figure(figure)} {left_out_remark(len(points) - len(shown), figure)}"
    return Chart(figure.title, text.strip(), panels if shown else [])


def loss_chart(figure: LossFigure) -> Chart:
    """Training losses as measured (faint) and smoothed, validation losses (dashed), and the naive models."""
    import altair as alt

    kinds = {"each step": figure.raw, "smoothed": figure.smoothed, "validation": figure.validation}
    labels = list(figure.raw)
    axes = LineFigure(figure.title, "step", "loss, nats a token", {"": {label: [] for label in labels}})
    points = [point for lines in kinds.values() for line in lines.values() for point in line]
    shown = drawable([*points, *((points[0][0], nats) for nats in figure.baselines.values() if points)], axes)
    rows = [
        row for what, lines in kinds.items() for name, line in lines.items() for row in _rows(name, what, line, axes)
    ]
    by_kind = {what: [row for row in rows if row.what == what] for what in kinds}
    layers: list[alt.Chart] = [
        _lines(axes, by_kind["each step"], shown, opacity=0.25),
        _lines(axes, by_kind["smoothed"], shown),
        _lines(axes, by_kind["validation"], shown, stroke=STROKES[1]),
        _answers(axes, by_kind["smoothed"] + by_kind["validation"]),
        *_naive(figure.baselines),
    ]
    ends = [f"{label} {line[0][1]:.3g} to {line[-1][1]:.3g}" for label, line in figure.validation.items() if line]
    naive = ", ".join(f"{name} {nats:.3g}" for name, nats in figure.baselines.items())
    text = (
        f"{figure.title}. Faint: each step; solid: smoothed; dashed: validation ({'; '.join(ends) or 'none'}). "
        f"Naive models: {naive or 'none'}. {left_out_remark(len(points) - len(drawable(points, axes)), axes)}"
    )
    return Chart(figure.title, text.strip(), [_finished(layers, "")] if drawable(points, axes) else [])


def training_charts(runs: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts of published trainings, those of one name together."""
    figures = training_figures(runs)
    return [loss_chart(figure) if isinstance(figure, LossFigure) else line_chart(figure) for figure in figures]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many of the points: of every stretch the lowest and the highest stay, so that no spike is lost.

    A value that is not finite counts as the highest of its stretch: the gap that it leaves stays too.
    """
    if len(points) <= most:
        return list(points)

    def height(index: int) -> float:
        return points[index][1] if math.isfinite(points[index][1]) else math.inf

    stretches, kept = (most - 2) // 2, {0, len(points) - 1}
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        kept |= {min(stretch, key=height), max(stretch, key=height)}
    return [points[index] for index in sorted(kept)]


@cache
def runtime() -> str:
    """The script that draws every chart of a page: Vega, Vega-Lite, vega-embed and a loop over the charts."""
    import altair
    import vl_convert

    major, minor = altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2]
    script = vl_convert.javascript_bundle(_DRAW, f"{major}.{minor}")
    # what would end the script early, or hide its end
    return script.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def content_hash(script: str) -> str:
    """The hash by which a page's Content-Security-Policy lets this script run and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# One chart after the other, so that the page stays responsive. `ast` because the policy of the page forbids eval.
_DRAW = """
(async () => {
  const options = {actions: false, renderer: "svg", ast: true, defaultStyle: false};
  for (const place of document.querySelectorAll(".chart")) {
    const specification = JSON.parse(place.querySelector("script").textContent);
    await vegaEmbed(place, specification, options);
    await new Promise((next) => setTimeout(next));
  }
  document.documentElement.dataset.charts = "drawn";
})();
"""


def _rows(label: str, what: str, points: Sequence[Point], figure: LineFigure) -> list[Row]:
    """The points of a line as the data of a chart. What cannot be drawn has no y, which breaks the line."""
    kept = thin(points)
    every = max(1, -(-len(kept) // MOST_ANSWERS))
    rows = []
    for index, (x, y) in enumerate(kept):
        fits = bool(drawable([(x, y)], figure))
        height = float(f"{y:.5g}") if fits else None
        rows.append(Row(x, height, label, what, fits and index % every == 0))
    return rows


def _lines(
    figure: LineFigure,
    rows: Sequence[Row],
    shown: Sequence[Point],
    opacity: float = 1.0,
    stroke: Sequence[int] = (),
) -> "alt.Chart":
    """The lines of a panel, on axes that hold all that the figure shows. A stroke is that of all lines."""
    import altair as alt

    labels = figure.line_labels
    chosen = alt.selection_point(name="chosen", fields=["line"], bind="legend")
    dash = list(stroke) if stroke else alt.Undefined
    data = alt.InlineData(values=[{"x": row.x, "y": row.y, "line": row.line} for row in rows])
    chart: alt.Chart = alt.Chart(data).mark_line(strokeWidth=1.6, strokeDash=dash)
    chart = chart.encode(
        x=alt.X(
            "x:Q",
            title=textwrap.wrap(figure.x_label, LETTERS_OF_TITLE) or figure.x_label,
            axis=_x_axis(figure, shown),
            scale=_scale(figure.x_log, [x for x, _ in shown]),
        ),
        y=alt.Y(
            "y:Q",
            title=figure.y_label,
            axis=alt.Axis(format=".3~g", tickCount=6) if figure.y_log else alt.Axis(tickCount=6),
            scale=_scale(figure.y_log, [y for _, y in shown]),
        ),
        color=alt.Color("line:N", title=None, scale=_cycle(labels, COLOURS), legend=_legend(labels)),
        opacity=alt.when(chosen).then(alt.value(opacity)).otherwise(alt.value(opacity / 10)),
    )
    if not stroke:
        strokes = [STROKES[index // len(COLOURS) % len(STROKES)] for index in range(len(labels))]
        scale = alt.Scale(domain=labels, range=strokes)
        chart = chart.encode(strokeDash=alt.StrokeDash("line:N", title=None, scale=scale, legend=_legend(labels)))
    with_choice: alt.Chart = chart.add_params(chosen)
    return with_choice


def _answers(figure: LineFigure, rows: Sequence[Row]) -> "alt.Chart":
    """The points that tell their numbers; those of short lines are seen, the others where the mouse is near."""
    import altair as alt

    labels = figure.line_labels
    counts = {label: sum(row.line == label for row in rows) for label in labels}
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, clear="pointerout")
    seen = 1 if max(counts.values(), default=0) <= MARKED else 0
    tips = [alt.Tooltip("line:N", title="line")]
    tips += [alt.Tooltip("what:N", title="what")] if any(row.what for row in rows) else []
    tips += [alt.Tooltip("x:Q", title=figure.x_label), alt.Tooltip("y:Q", title=figure.y_label, format=".4g")]
    fields = ("x", "y", "line", "what")
    values = [{name: getattr(row, name) for name in fields} for row in rows if row.answers]
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_point(filled=True, size=30)
        .encode(
            x="x:Q",
            y="y:Q",
            color=alt.Color("line:N", scale=_cycle(labels, COLOURS), legend=_legend(labels)),
            opacity=alt.when(near).then(alt.value(1)).otherwise(alt.value(seen)),
            tooltip=tips,
        )
        .add_params(near)
    )
    return chart


def _naive(baselines: Mapping[str, float]) -> "list[alt.Chart]":
    """A line and a name at the loss of each naive model."""
    import altair as alt

    if not baselines:
        return []
    values = [{"nats": nats, "model": f"{name} {nats:.2f}"} for name, nats in baselines.items()]
    chart = alt.Chart(alt.InlineData(values=values))
    rule = chart.mark_rule(color="#595959", strokeDash=[2, 2]).encode(y="nats:Q")
    name = chart.mark_text(align="right", dy=-6, color="#404040").encode(
        x=alt.value("width"), y="nats:Q", text="model:N"
    )
    return [rule, name]


def _scale(logarithmic: bool, values: Sequence[float]) -> "alt.Scale":
    import altair as alt

    if not values:
        return alt.Scale()
    domain = [min(values), max(values)]
    return alt.Scale(type="log", domain=domain) if logarithmic else alt.Scale(domain=domain, zero=False, nice=True)


def _x_axis(figure: LineFigure, shown: Sequence[Point]) -> "alt.Axis":
    """On a logarithmic axis the places themselves, as short as in a drawn figure; whole numbers between whole ones."""
    import altair as alt

    places = sorted({x for x, _ in shown})
    if figure.x_log:
        labels = [short_number(place) for place in places]
        named = f"{json.dumps(labels)}[indexof({json.dumps(places)}, datum.value)]"
        return alt.Axis(labelExpr=named, values=places, labelOverlap="greedy")
    return alt.Axis(tickCount=6, tickMinStep=1) if all(x == int(x) for x in places) else alt.Axis(tickCount=6)


def _cycle(labels: Sequence[str], colours: Sequence[str]) -> "alt.Scale":
    """A colour a label, the same in every panel."""
    import altair as alt

    return alt.Scale(domain=list(labels), range=[colours[index % len(colours)] for index in range(len(labels))])


def _legend(labels: Sequence[str]) -> "alt.Legend":
    import altair as alt

    columns = 2 if max(map(len, labels), default=0) <= SHORT_LABEL else 1
    return alt.Legend(orient="bottom", columns=columns, labelLimit=0, symbolType="stroke", symbolOpacity=1)


def _finished(layers: "Sequence[alt.Chart]", title: str) -> Specification:
    """Layers as one specification, as wide as the place that it is put into."""
    import altair as alt

    chart = alt.layer(*layers).properties(width="container", height=HEIGHT, autosize=alt.AutoSizeParams(type="fit-x"))
    if title:
        chart = chart.properties(title=title)
    chart = chart.configure(font="system-ui, sans-serif", background="white").configure_view(stroke=None)
    chart = chart.configure_axis(gridColor="#dddddd", labelColor="#404040", titleFontWeight="normal")
    specification: Specification = chart.configure_title(fontWeight="normal", anchor="start").to_dict()
    return specification
