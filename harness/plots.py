"""Curves of the trainings behind a report, as PNG. Matplotlib is imported when a plot is drawn."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.probe_plot import plot_probes
from harness.runlog import RunLogError, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 0.05


def exponential_average(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Bias-corrected exponential average: the weight of a value ``i`` steps back is ``weight (1 - weight)^i``.

    A value that is not finite is left out of the average and leaves a gap in its place.
    """
    smoothed, total, mass = [], 0.0, 0.0
    for value in values:
        if not math.isfinite(value):
            smoothed.append(math.nan)
            continue
        total = (1 - weight) * total + weight * value
        mass = (1 - weight) * mass + weight
        smoothed.append(total / mass)
    return smoothed


def gradient_ratios(steps: Sequence[Mapping[str, Any]]) -> list[float]:
    """Gradient norm of RWKV-6 over that of Mamba-2 by step, NaN over a dead branch; empty without two branches."""
    if not steps or not {"grad_norm_rwkv", "grad_norm_mamba"} <= set(steps[0]):
        return []
    return [row["grad_norm_rwkv"] / row["grad_norm_mamba"] if row["grad_norm_mamba"] else math.nan for row in steps]


def plot_runs(runs: Sequence[Mapping[str, Any]], directory: Path) -> tuple[list[Path], list[str]]:
    """Loss and gradients of each training and, where its states were probed, a second figure of them by step.

    Gives the files, and a remark for every run without one.

    A run is ``{"directory", "seed", "name", "baselines"}`` with metrics.jsonl in its directory; baselines are nats a
    token. A log that is gone or damaged costs its figure and no more: the report does not rest on it.
    """
    plots, remarks = [], []
    for index, run in enumerate(runs):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            plots.append(_plot_run(run, directory / f"run-{index}-seed-{run['seed']}.png"))
            probes = [row for row in read_rows(Path(run["directory"]), "probe") if "state_rms" in row]
            if probes:
                path = directory / f"run-{index}-seed-{run['seed']}-state.png"
                plots.append(plot_probes(probes, f"{run['name']}, seed {run['seed']}: states and gates by step", path))
        except RunLogError as error:
            remarks.append(f"no curves of {run['name']}, seed {run['seed']}: {error}")
    return plots, remarks


def _plot_run(run: Mapping[str, Any], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    source = Path(run["directory"])
    steps, evals = read_rows(source, "step"), read_rows(source, "eval")
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, grad_axes = figure.subplots(2, 1, sharex=True)
    figure.suptitle(f"{run['name']}, seed {run['seed']}")
    _draw_losses(loss_axes, steps, evals, run["baselines"])
    _draw_gradients(grad_axes, steps)
    figure.savefig(path, dpi=110)
    return path


def _draw_losses(
    axes: "Axes", steps: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]
) -> None:
    axes.plot(
        [row["step"] for row in steps], exponential_average([row["loss"] for row in steps]), label="train, smoothed"
    )
    axes.plot([row["step"] for row in evals], [row["val_loss"] for row in evals], marker=".", label="validation")
    for name, nats in baselines.items():
        axes.axhline(nats, linestyle="--", linewidth=0.8, color="gray")
        axes.annotate(f"{name} {nats:.2f}", (0.995, nats), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set_ylabel("loss, nats a token")
    # above the curves, clear of the labels of the naive models at the right
    axes.legend(loc="upper center", ncols=2)


def _draw_gradients(axes: "Axes", steps: Sequence[Mapping[str, Any]]) -> None:
    numbers = [row["step"] for row in steps]
    axes.plot(numbers, [row["grad_norm"] for row in steps], linewidth=0.8, label="global norm")
    ratios = gradient_ratios(steps)
    if ratios:
        axes.plot(numbers, ratios, linewidth=0.8, label="RWKV-6 over Mamba-2")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("gradient before clipping")
    axes.legend()
