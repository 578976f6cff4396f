"""The probe rows of one training as a figure: gates, states and writes by step.

Colour is the layer, dash the branch; what is pooled over layers is black. Colours and dashes are those of
``harness.figures``; more layers than it has colours take shades from dark to light, which need no hue to be told apart.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.figures import COLOURS, DASHES, DPI, WIDTH_INCHES, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

POOLED_COLOUR = "#000000"


def plot_probes(rows: Rows, title: str, path: Path) -> Path:
    """Write the figure of rows as ``harness.probe_row`` makes them (each with ``state_rms``); gives ``path`` back."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    style = _Style(rows)
    panels = [draw for prefix, draw in _PANELS.items() if any(key.startswith(prefix) for row in rows for key in row)]
    lines = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(WIDTH_INCHES, 3.0 * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    grid = list(figure.subplots(lines, 2, squeeze=False).flat)
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes, rows, style)
        axes.set_xlabel("step")
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], **look) for look in style.legend()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=9, frameon=False)
    figure.savefig(path, dpi=DPI)
    return path


def gate_points(rows: Rows, layer: int) -> list[Point]:
    """Mean gate of a layer by step; empty for a layer without one."""
    return _present([(row["step"], row["gate_mean"][layer]) for row in rows if "gate_mean" in row])


def state_layers(rows: Rows) -> dict[str, int]:
    """How many layers the rows list for each state, by its name, in order of appearance."""
    return {name: len(layers) for row in rows for name, layers in row["state_rms"].items()}


def state_points(rows: Rows, name: str, layer: int) -> list[Point]:
    """RMS of a state in one layer by step, over its heads; empty where the layer lacks it."""
    heads = [(row["step"], row["state_rms"].get(name, [None] * (layer + 1))[layer]) for row in rows]
    return _present([(step, None if rms is None else math.hypot(*rms) / math.sqrt(len(rms))) for step, rms in heads])


def _present(points: Sequence[tuple[int, float | None]]) -> list[Point]:
    """The points that a layer has, with NaN for a number that is not finite."""
    return [(step, value if math.isfinite(value) else math.nan) for step, value in points if value is not None]


class _Style:
    """A colour for each layer and a dash for each branch (or kind of state) of these rows."""

    def __init__(self, rows: Rows) -> None:
        states = state_layers(rows)
        pooled = [key.removeprefix(p) for row in rows for key in row for p in ("rho_", "share_") if key.startswith(p)]
        names = dict.fromkeys([*states, *pooled])
        self.names = {name: DASHES[i % len(DASHES)] for i, name in enumerate(names)}
        self.layers = _layer_colours(max(states.values()))

    def legend(self) -> list[dict[str, Any]]:
        """Label and look of each entry."""
        layers = [{"color": colour, "label": f"layer {i}"} for i, colour in enumerate(self.layers)]
        return layers + [
            {"color": POOLED_COLOUR, "linestyle": dash, "label": name} for name, dash in self.names.items()
        ]


def _layer_colours(count: int) -> list[Any]:
    hues = [colour for colour in COLOURS if colour != POOLED_COLOUR]
    if count <= len(hues):
        return hues[:count]
    from matplotlib import colormaps

    # the lightest end is too faint on white
    return [colormaps["viridis"](0.9 * i / (count - 1)) for i in range(count)]


def _draw_gates(axes: "Axes", rows: Rows, style: _Style) -> None:
    for layer, colour in enumerate(style.layers):
        _draw(axes, gate_points(rows, layer), colour, "-")
    axes.set_ylim(0, 1)
    axes.set_title("mixing gate", fontsize=10)
    axes.set_ylabel("mean gate (share of RWKV-6)")


def _draw_states(axes: "Axes", rows: Rows, style: _Style) -> None:
    for name in style.names:
        for layer, colour in enumerate(style.layers):
            _draw(axes, state_points(rows, name, layer), colour, style.names[name])
    axes.set_yscale("log")
    axes.set_title("states", fontsize=10)
    axes.set_ylabel("RMS of the state")


def _draw_sensitivity(axes: "Axes", rows: Rows, style: _Style) -> None:
    _draw_pooled(axes, rows, style, "rho_")
    axes.set_ylim(0, 1)
    axes.set_title("writes, layers pooled", fontsize=10)
    axes.set_ylabel("rho: dependence on the input")


def _draw_shares(axes: "Axes", rows: Rows, style: _Style) -> None:
    _draw_pooled(axes, rows, style, "share_")
    axes.set_title("who writes, layers pooled", fontsize=10)
    axes.set_ylabel("type A share")


_PANELS: dict[str, Callable[["Axes", Rows, _Style], None]] = {
    "gate_mean": _draw_gates,
    "state_rms": _draw_states,
    "rho_": _draw_sensitivity,
    "share_": _draw_shares,
}


def _draw_pooled(axes: "Axes", rows: Rows, style: _Style, prefix: str) -> None:
    for name, dash in style.names.items():
        points = [(row["step"], row[prefix + name]) for row in rows if prefix + name in row]
        _draw(axes, _present(points), POOLED_COLOUR, dash)


def _draw(axes: "Axes", points: Sequence[Point], colour: Any, dash: str) -> None:
    """A line with a gap where a number is not finite; nothing where the layer lacks what is drawn."""
    if points:
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=colour,
            linestyle=dash,
            marker=".",
            markersize=4,
            linewidth=1.3,
        )
