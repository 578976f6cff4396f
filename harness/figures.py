"""Figures that checks publish: their numbers or texts as plain data, and how they are drawn.

Colours are those of Okabe and Ito, which readers with any common colour blindness can tell apart; lines also differ in
dash and marker. Matplotlib is imported when a figure is drawn.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, TypeAdapter
from pydantic.dataclasses import dataclass

from harness.errors import HarnessError
from harness.records import JsonNumber

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe & Ito, "Color universal design" (2008), without their yellow, which is too faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# more markers than this would hide the line
MARKS = 12
# beyond this many cells a number in each could not be read
NUMBERED_CELLS = 130
# points of the numbers in cells: as a rule, and where cells are narrow
NUMBER_SIZES = (8.0, 5.0)
# of the width and height of a cell, at most so much is its number
CELL_FILL = 0.92
WIDTH_INCHES = 9.0
DPI = 120
MAX_TICKS = 24
MAX_LOG_TICKS = 8
# letters of 10 points that fit beside each other in a figure of one panel
LETTERS = 90

_CONFIG = ConfigDict(extra="forbid")

Point = tuple[JsonNumber, JsonNumber]


class FigureError(HarnessError):
    """A figure that cannot be drawn: nothing in it is finite, its rows differ in length, or its labels do not fit."""


@dataclass(frozen=True, config=_CONFIG)
class LineFigure:
    """Lines over a common axis, in one or more panels that share both labels.

    panels  panel title -> line label -> points ``(x, y)`` in the order they are joined. The same label has the same
            colour in every panel: group by panel what would be too much for one
    """

    title: str
    x_label: str
    y_label: str
    panels: dict[str, dict[str, list[Point]]]
    y_log: bool = False
    x_log: bool = False
    kind: Literal["lines"] = "lines"

    @property
    def line_labels(self) -> list[str]:
        """Every label once, in order of appearance."""
        return list(dict.fromkeys(label for lines in self.panels.values() for label in lines))


@dataclass(frozen=True, config=_CONFIG)
class MatrixFigure:
    """A matrix ``values[row][column]`` in colour, row 0 on top. diverging: zero is the middle of the colours."""

    title: str
    x_label: str
    y_label: str
    value_label: str
    values: list[list[JsonNumber]]
    x_ticks: list[str] = field(default_factory=list)
    y_ticks: list[str] = field(default_factory=list)
    diverging: bool = False
    kind: Literal["matrix"] = "matrix"


@dataclass(frozen=True, config=_CONFIG)
class Passage:
    """Text that a model wrote: whose, after which prompt."""

    label: str
    prompt: str
    text: str


@dataclass(frozen=True, config=_CONFIG)
class TextFigure:
    """Passages to be read, not drawn."""

    title: str
    passages: list[Passage]
    kind: Literal["text"] = "text"


Drawn = LineFigure | MatrixFigure
Figure = Drawn | TextFigure

_ADAPTER: TypeAdapter[Figure] = TypeAdapter(Annotated[LineFigure | MatrixFigure | TextFigure, Discriminator("kind")])


def figure_to_json(figure: Figure) -> str:
    """The numbers of a figure as JSON; NaN and infinities are the strings ``nan``, ``inf`` and ``-inf``.

    Raises FigureError for a matrix with rows of unequal length, or with ticks that do not match its rows or columns.
    """
    if isinstance(figure, MatrixFigure):
        _require_rectangle(figure)
    return _ADAPTER.dump_json(figure).decode()


def _require_rectangle(figure: MatrixFigure) -> None:
    widths = {len(row) for row in figure.values}
    if len(widths) > 1:
        raise FigureError(f"{figure.title}: rows of {sorted(widths)} values; a matrix has rows of one length")
    sizes = {"x": (figure.x_ticks, max(widths, default=0)), "y": (figure.y_ticks, len(figure.values))}
    for name, (ticks, size) in sizes.items():
        if ticks and len(ticks) != size:
            raise FigureError(f"{figure.title}: {len(ticks)} {name}_ticks for {size} values; give one each, or none")


def figure_from_json(text: str) -> Figure:
    """The inverse of ``figure_to_json``."""
    return _ADAPTER.validate_json(text)


def describe_figure(figure: Figure) -> str:
    """What the figure shows, in words: the text for readers who do not see it."""
    if isinstance(figure, TextFigure):
        return f"{figure.title}: {len(figure.passages)} passages."
    if isinstance(figure, MatrixFigure):
        finite = [value for row in figure.values for value in row if math.isfinite(value)]
        reach = f", from {min(finite):.3g} to {max(finite):.3g}" if finite else ""
        size = f"{len(figure.values)} by {len(figure.values[0]) if figure.values else 0}"
        return f"{figure.title}: {figure.value_label} by {figure.y_label} and {figure.x_label} ({size}){reach}."
    parts = []
    for panel, lines in figure.panels.items():
        for name, points in lines.items():
            drawn = drawable(points, figure)
            ends = f"{drawn[0][1]:.3g} to {drawn[-1][1]:.3g}" if drawn else "nothing finite"
            parts.append(f"{panel + ', ' if panel else ''}{name}: {ends}")
    shown = "; ".join(parts[:12]) + ("; and more" if len(parts) > 12 else "")
    return f"{figure.title}: {figure.y_label} over {figure.x_label}. From first to last point: {shown}."


def draw_figure(figure: Drawn, path: Path) -> None:
    """Write the figure as PNG. Raises FigureError when nothing in it can be drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(layout="constrained")
    FigureCanvasAgg(canvas)
    left_out = _draw_lines(canvas, figure) if isinstance(figure, LineFigure) else _draw_matrix(canvas, figure)
    canvas.suptitle("\n".join(filter(None, (figure.title, left_out_remark(left_out, figure)))), fontsize=12)
    _fit_numbers(canvas)
    canvas.savefig(path, dpi=DPI)


def left_out_remark(left_out: int, figure: Drawn) -> str:
    """What is said of values that could not be drawn; nothing when there are none."""
    log = isinstance(figure, LineFigure) and (figure.x_log or figure.y_log)
    why = "not finite, or not positive on a logarithmic axis" if log else "not finite"
    return f"{left_out} value{'s' if left_out > 1 else ''} left out: {why}" if left_out else ""


def drawable(points: Sequence[Point], figure: LineFigure) -> list[Point]:
    """The points that are finite, and positive along a logarithmic axis."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not figure.x_log) and (y > 0 or not figure.y_log)
    ]


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour first, then dash: any two of 28 lines differ."""
    count = len(COLOURS)
    return {
        label: {
            "color": COLOURS[i % count],
            "linestyle": DASHES[(i // count) % len(DASHES)],
            "marker": MARKERS[(i + i // count) % len(MARKERS)],
        }
        for i, label in enumerate(labels)
    }


def _draw_lines(canvas: "Canvas", figure: LineFigure) -> int:
    """Draw every panel and one legend below them; gives how many points were left out."""
    drawn = {panel: {name: drawable(p, figure) for name, p in lines.items()} for panel, lines in figure.panels.items()}
    left_out = sum(len(p) for lines in figure.panels.values() for p in lines.values())
    left_out -= sum(len(p) for lines in drawn.values() for p in lines.values())
    if not any(points for lines in drawn.values() for points in lines.values()):
        raise FigureError(f"{figure.title}: no point can be drawn")
    columns = min(len(drawn), 2 if len(drawn) <= 8 else 3)
    rows = -(-len(drawn) // columns)
    legend_columns = max(1, min(len(figure.line_labels), int(90 / (max(map(len, figure.line_labels)) + 6))))
    legend_rows = -(-len(figure.line_labels) // legend_columns)
    height = 4.2 if len(drawn) == 1 else (3.0 if rows <= 2 else 2.3) * rows
    canvas.set_size_inches(WIDTH_INCHES, height + 0.7 + 0.2 * legend_rows)
    grid = canvas.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles, handles = _styles(figure.line_labels), {}
    for axes, (panel, lines) in zip(grid.flat, drawn.items(), strict=False):
        axes.set_title(panel, fontsize=10)
        for name, points in lines.items():
            handles[name] = _draw_line(axes, points, styles[name])
        axes.set_yscale("log" if figure.y_log else "linear")
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    _set_line_ticks(grid.flat[0], figure, sorted({x for lines in drawn.values() for p in lines.values() for x, _ in p}))
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    # a label of the whole canvas would lie on the legend
    for axes in grid.flat[max(0, len(drawn) - columns) : len(drawn)]:
        axes.set_xlabel(textwrap.fill(figure.x_label, LETTERS // columns))
        axes.tick_params(labelbottom=True)
    canvas.supylabel(figure.y_label, fontsize=10)
    canvas.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns, fontsize=9, frameon=False
    )
    return left_out


def _set_line_ticks(axes: "Axes", figure: LineFigure, places: Sequence[float]) -> None:
    """Whole numbers on an axis of whole numbers; on a logarithmic one the places themselves, not powers of ten."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    if figure.x_log:
        axes.set_xscale("log")
        chosen = _apart(places)
        axes.set_xticks(chosen, [short_number(place) for place in chosen])
        axes.xaxis.set_minor_locator(NullLocator())
    elif all(place == int(place) for place in places):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _apart(places: Sequence[float]) -> list[float]:
    """Of ascending places on a logarithmic axis those that leave room for a label between them, the first always."""
    chosen: list[float] = []
    least = math.log(places[-1] / places[0]) / MAX_LOG_TICKS
    for place in places:
        # a little less than asked: places a power of two apart are so by rounded logarithms
        if not chosen or math.log(place / chosen[-1]) > 0.999 * least:
            chosen.append(place)
    return chosen


def short_number(place: float) -> str:
    """``512``, ``0.25``; from a hundred thousand on with a letter: ``2.1M``, ``4P``."""
    for unit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # by what is shown: .9999 million are 1M, not 1e+03k
        if (shown := float(f"{place:.3g}")) >= max(unit, 1e5):
            return f"{shown / unit:.3g}{letter}"
    return f"{place:g}"


def _draw_line(axes: "Axes", points: Sequence[Point], style: Mapping[str, Any]) -> Any:
    return axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=style["color"],
        linestyle=style["linestyle"],
        marker=style["marker"],
        markevery=max(1, len(points) // MARKS),
        markersize=4,
        linewidth=1.5,
    )[0]


def _draw_matrix(canvas: "Canvas", figure: MatrixFigure) -> int:
    """Draw the matrix and its scale; gives how many values were left out."""
    finite = [value for row in figure.values for value in row if math.isfinite(value)]
    if not finite:
        raise FigureError(f"{figure.title}: no value can be drawn")
    rows, columns = len(figure.values), len(figure.values[0])
    canvas.set_size_inches(WIDTH_INCHES, min(7.0, max(3.2, 1.6 + 0.32 * rows)))
    axes = canvas.subplots()
    reach = max(abs(value) for value in finite) or 1.0
    low, high = (-reach, reach) if figure.diverging else (min(finite), max(finite))
    shown = [[value if math.isfinite(value) else math.nan for value in row] for row in figure.values]
    axes.set_facecolor("#bbbbbb")
    colours = "RdBu_r" if figure.diverging else "cividis"
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap=colours)
    canvas.colorbar(image, ax=axes, label=figure.value_label)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    _set_ticks(axes, figure)
    if rows * columns <= NUMBERED_CELLS:
        for row, column, value in _cells(figure):
            place = (value - low) / (high - low) if high > low else 0.5
            light = 0.25 < place < 0.75 if figure.diverging else place > 0.5
            axes.text(
                column, row, f"{value:.3g}", ha="center", va="center", fontsize=NUMBER_SIZES[0],
                color="k" if light else "w",
            )  # fmt: skip
    return rows * columns - len(finite)


def _fit_numbers(canvas: "Canvas") -> None:
    """Shrink the numbers of a matrix until each lies inside its cell; leave them out where they would be too small."""
    axes = canvas.axes[0]
    if not axes.texts:
        return
    # the size of a cell is known when everything else has its place
    canvas.draw_without_rendering()
    [(left, top), (right, bottom)] = axes.transData.transform([(-0.5, -0.5), (0.5, 0.5)])
    boxes = [text.get_window_extent() for text in axes.texts]
    width, height = max(box.width for box in boxes), max(box.height for box in boxes)
    usual, least = NUMBER_SIZES
    size = min(usual, usual * CELL_FILL * min((right - left) / width, (top - bottom) / height))
    for text in list(axes.texts):
        if size < least:
            text.remove()
        else:
            text.set_fontsize(size)


def _cells(figure: MatrixFigure) -> Iterator[tuple[int, int, float]]:
    for row, values in enumerate(figure.values):
        for column, value in enumerate(values):
            if math.isfinite(value):
                yield row, column, value


def _set_ticks(axes: "Axes", figure: MatrixFigure) -> None:
    """Label rows and columns, at most MAX_TICKS of each: more would run into each other."""
    if figure.x_ticks:
        chosen = range(0, len(figure.x_ticks), -(-len(figure.x_ticks) // MAX_TICKS))
        long = sum(len(figure.x_ticks[i]) for i in chosen) > 80
        axes.set_xticks(list(chosen), [figure.x_ticks[i] for i in chosen], rotation=60 if long else 0, fontsize=8)
    if figure.y_ticks:
        chosen = range(0, len(figure.y_ticks), -(-len(figure.y_ticks) // MAX_TICKS))
        axes.set_yticks(list(chosen), [figure.y_ticks[i] for i in chosen], fontsize=8)
