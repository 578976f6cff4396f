"""The logs of trainings as figures: losses beside the naive models, gradients, and what the probe saw, by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.figures import LineFigure, Point
from harness.plots import exponential_average, gradient_ratios
from harness.probe_plot import gate_points, state_layers, state_points
from harness.runlog import RunLogError, read_rows

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LossFigure:
    """Losses of trainings that differ in their seed, in nats a token, by step; baselines are those of naive models.

    Each of raw, smoothed and validation holds points ``(step, nats)`` by the label of the training.
    """

    title: str
    raw: dict[str, list[Point]] = field(default_factory=dict)
    smoothed: dict[str, list[Point]] = field(default_factory=dict)
    validation: dict[str, list[Point]] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)


def training_figures(runs: Sequence[Mapping[str, Any]]) -> list[LossFigure | LineFigure]:
    """The figures of published trainings, those of one name together; see ``harness.plots.plot_runs`` for ``runs``.

    A log that is gone or damaged is left out here: ``plot_runs`` says so in the report.
    """
    figures: list[LossFigure | LineFigure] = []
    for name in dict.fromkeys(str(run["name"]) for run in runs):
        logs: dict[str, Rows] = {}
        baselines: dict[str, float] = {}
        for run in runs:
            if run["name"] != name:
                continue
            try:
                logs[f"seed {run['seed']}"] = read_rows(Path(run["directory"]))
            except RunLogError:
                continue
            baselines |= run["baselines"]
        if logs:
            figures += [_losses(name, logs, baselines), *_gradients(name, logs), *_probes(name, logs)]
    return figures


def _of_kind(rows: Rows, kind: str) -> list[Mapping[str, Any]]:
    """The rows of one kind, in order: see ``harness.runlog``."""
    return [row for row in rows if row["kind"] == kind]


def _losses(name: str, logs: Mapping[str, Rows], baselines: Mapping[str, float]) -> LossFigure:
    figure = LossFigure(f"{name}: loss by step", baselines=dict(baselines))
    for label, rows in logs.items():
        steps = _of_kind(rows, "step")
        numbers, losses = [row["step"] for row in steps], [row["loss"] for row in steps]
        figure.raw[label] = list(zip(numbers, losses, strict=True))
        figure.smoothed[label] = list(zip(numbers, exponential_average(losses), strict=True))
        figure.validation[label] = [(row["step"], row["val_loss"]) for row in _of_kind(rows, "eval")]
    return figure


def _gradients(name: str, logs: Mapping[str, Rows]) -> list[LineFigure]:
    steps = {label: _of_kind(rows, "step") for label, rows in logs.items()}
    norms = {label: [(row["step"], row["grad_norm"]) for row in rows] for label, rows in steps.items() if rows}
    ratios = {
        label: list(zip((row["step"] for row in rows), found, strict=True))
        for label, rows in steps.items()
        if (found := gradient_ratios(rows))
    }
    what = {
        (f"{name}: gradient norm by step", "norm of the gradient before clipping"): norms,
        (f"{name}: balance of the branches' gradients", "gradient norm, RWKV-6 over Mamba-2"): ratios,
    }
    return [LineFigure(*(title, "step", y), {"": lines}, y_log=True) for (title, y), lines in what.items() if lines]


def _probes(name: str, logs: Mapping[str, Rows]) -> list[LineFigure]:
    probes = {label: [row for row in _of_kind(rows, "probe") if "state_rms" in row] for label, rows in logs.items()}
    gates: dict[str, dict[str, list[Point]]] = {}
    states: dict[str, dict[str, list[Point]]] = {}
    for label, rows in probes.items():
        for layer in range(max((len(row["gate_mean"]) for row in rows if "gate_mean" in row), default=0)):
            if points := gate_points(rows, layer):
                gates.setdefault(label, {})[f"layer {layer}"] = points
        for state, layers in state_layers(rows).items():
            for layer in range(layers):
                if points := state_points(rows, state, layer):
                    states.setdefault(f"{state}, {label}", {})[f"layer {layer}"] = points
    figures = []
    if gates:
        figures.append(LineFigure(f"{name}: mixing gate by step", "step", "mean gate (share of RWKV-6)", gates))
    if states:
        figures.append(
            LineFigure(f"{name}: size of the states by step", "step", "RMS of the state", states, y_log=True)
        )
    return figures
