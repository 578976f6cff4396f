"""Figures of EVOLUTION: dose response, effect of an edit by lag, what is left of a difference in each layer."""

from collections.abc import Mapping

from harness.evolution import LAGS, Evolution
from harness.figures import LineFigure
from harness.metrics.intervals import Interval


def figures(found: Evolution, subject: str) -> dict[str, LineFigure]:
    """All figures by name; ``subject`` ends their titles."""
    branches = found.branches.items()
    return {
        "evolution-dose": LineFigure(
            title=f"State distance by number of edited tokens, {subject}",
            x_label="tokens edited, of the 16 that lie 17 to 32 back",
            y_label="relative distance",
            panels={"": {branch: _points(b.dose) for branch, b in branches}},
        ),
        "evolution-edit": LineFigure(
            title=f"State distance after one edited token, {subject}",
            x_label="lag of the edit, tokens",
            y_label="relative distance",
            panels={"": {branch: _points(b.edit) for branch, b in branches}},
            x_log=True,
            y_log=True,
        ),
        "evolution-retention": LineFigure(
            title=f"What is left of a difference in one layer's state, {subject}",
            x_label="tokens read since",
            y_label="share left",
            panels={
                branch: {
                    f"layer {layer}": list(zip(map(float, LAGS), kept.retained, strict=True))
                    for layer, kept in b.layers.items()
                }
                for branch, b in branches
            },
            x_log=True,
        ),
    }


def _points(curve: Mapping[int, Interval]) -> list[tuple[float, float]]:
    return [(float(x), interval.value) for x, interval in curve.items()]
