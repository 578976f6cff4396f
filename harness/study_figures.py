"""What the studies draw: answers to a knob, cells of a design, variants on two axes and their ranks, gates by step."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from harness.figures import LineFigure, MatrixFigure
from harness.metrics.pareto import Standing


def response_figure(
    title: str, knob_label: str, knobs: Sequence[float], seeds: Sequence[int], values: Mapping[str, Sequence[float]]
) -> LineFigure:
    """A line a seed over the knob, each outcome centred on its mean and in units of its range, a panel an outcome."""
    panels = {}
    for name, column in values.items():
        centre, reach = fmean(column), (max(column) - min(column)) or 1.0
        panels[f"{name} (mean {centre:.3g}, range {reach:.2g})"] = {
            f"seed {seed}": [
                (m, (value - centre) / reach) for m, s, value in zip(knobs, seeds, column, strict=True) if s == seed
            ]
            for seed in dict.fromkeys(seeds)
        }
    return LineFigure(title, knob_label, "outcome less its mean, over its range", panels, x_log=True)


def cells_figure(title: str, value_label: str, means: Sequence[Sequence[float]], rows: Sequence[str],
                 columns: Sequence[str]) -> MatrixFigure:  # fmt: skip
    """The means of a two-by-two design."""
    return MatrixFigure(
        title, "corpus", "tokenisation", value_label, [list(row) for row in means],
        x_ticks=list(columns), y_ticks=list(rows),
    )  # fmt: skip


def frontier_figure(title: str, points: Mapping[str, tuple[float, float]], frontier: Sequence[str]) -> LineFigure:
    """Every variant a point (loss, smaller share); the line joins those that nothing beats."""
    line = sorted(points[name] for name in frontier)
    return LineFigure(
        title,
        "validation loss, nats/token",
        "smaller share of what is felt",
        {"": {"frontier": line, **{name: [point] for name, point in points.items()}}},
    )


def ranking_figure(title: str, standings: Mapping[str, Standing]) -> MatrixFigure:
    """Ranks of the variants by loss and by balance, each with the ends of its interval, and P(on the frontier)."""
    rows = sorted(standings, key=lambda name: standings[name].loss_rank.value)
    return MatrixFigure(
        title,
        "aim",
        "variant",
        "rank (1 is best); last column: probability",
        [
            [
                value
                for rank in (standings[name].loss_rank, standings[name].balance_rank)
                for value in (rank.value, rank.low, rank.high)
            ]
            + [standings[name].frontier]
            for name in rows
        ],
        x_ticks=["loss", "low", "high", "balance", "low", "high", "P(frontier)"],
        y_ticks=rows,
    )


def gates_figure(title: str, paths: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> LineFigure:
    """A line a start of the mixing gate: ``(steps, share of RWKV-6, mean over layers and seeds)``."""
    lines = {
        name: [(float(step), share) for step, share in zip(steps, shares, strict=True)]
        for name, (steps, shares) in paths.items()
    }
    return LineFigure(title, "updates", "mean gate (share of RWKV-6)", {"": lines})
