"""Figures of D1: sizes and effective ranks of states by position, sizes by step of the training."""

from collections.abc import Sequence

from harness.divergence import PositionGrowth
from harness.figures import LineFigure
from harness.step_growth import LayerSteps


def position_figures(growth: PositionGrowth) -> dict[str, LineFigure]:
    """RMS of each head by position, a panel for each layer and branch; and effective ranks, a panel for each branch."""
    sizes = {
        f"layer {site.layer} {site.branch}.{site.kind}": {
            f"head {head}": list(zip(map(float, growth.positions), column, strict=True))
            for head, column in enumerate(zip(*site.sizes, strict=True))
        }
        for site in growth.sites
    }
    ranks: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for site in growth.sites:
        if site.ranks:
            points = list(zip(map(float, growth.positions), site.ranks, strict=True))
            ranks.setdefault(f"{site.branch}.{site.kind}", {})[f"layer {site.layer}"] = points
    figures = {
        "state-size-by-position": LineFigure(
            f"Size of states by position, trained on {growth.trained} tokens",
            "tokens read",
            "RMS of the head's entries",
            sizes,
            y_log=True,
            x_log=True,
        )
    }
    if ranks:
        figures["state-rank-by-position"] = LineFigure(
            "Effective rank of the median head by position", "tokens read", "directions", ranks, x_log=True
        )
    return figures


def step_figure(layers: Sequence[LayerSteps]) -> LineFigure:
    """RMS of the largest head by step, a panel for each state."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for layer in layers:
        points = [(float(step), max(heads)) for step, heads in zip(layer.steps, layer.rms, strict=True)]
        panels.setdefault(layer.state, {})[f"layer {layer.layer}"] = points
    return LineFigure("Size of states along the training", "step", "RMS of the largest head", panels, y_log=True)
