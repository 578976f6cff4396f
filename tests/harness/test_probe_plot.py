"""The figure of probe rows: what is drawn where, for every shape that rows come in."""

import json
import math

import pytest
from matplotlib.figure import Figure

from harness.plots import plot_runs
from harness.probe_plot import plot_probes

HYBRID = {
    "rho_rwkv": 0.5, "rho_mamba": 0.4, "share_rwkv": 0.1, "share_mamba": 0.9, "gate_mean": [0.3, None, 0.2],
    "state_rms": {"rwkv": [[3.0, 4.0], [1.0, 1.0], [5.0, 5.0]], "mamba": [[0.01, 0.02], None, [0.03, 0.03]]},
}  # fmt: skip


def rows(row, steps=(50, 100, 150)):
    return [{"kind": "probe", "step": step, **row} for step in steps]


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """The panels of the figure drawn last, by title: lists of ``(steps, values)``."""
    drawn = {}
    save = Figure.savefig

    def spy(self, *arguments, **options):
        for axes in self.axes:
            if axes.get_title():
                drawn[axes.get_title()] = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return drawn


def test_a_hybrid_has_four_panels_and_a_line_for_what_each_layer_has(panels, tmp_path):
    path = plot_probes(rows(HYBRID), "GF-MH, seed 0", tmp_path / "a.png")
    assert path.stat().st_size > 10_000
    assert {title: len(lines) for title, lines in panels.items()} == {
        "mixing gate": 2, "states": 5, "writes, layers pooled": 2, "who writes, layers pooled": 2
    }  # fmt: skip
    assert panels["states"][0] == ([50, 100, 150], [pytest.approx(math.sqrt(12.5))] * 3)
    assert panels["mixing gate"][1] == ([50, 100, 150], [0.2] * 3)


def test_a_model_of_many_layers_and_no_gate_has_one_panel_for_its_states(panels, tmp_path):
    cache = {"attention.k": [[1.0]] * 12, "attention.v": [[2.0]] * 12}
    plot_probes(rows({"state_rms": cache}), "GPT2", tmp_path / "a.png")
    assert {title: len(lines) for title, lines in panels.items()} == {"states": 24}


def test_what_is_not_finite_leaves_a_gap(panels, tmp_path):
    broken = {**HYBRID, "rho_rwkv": math.nan, "state_rms": {"rwkv": [[math.inf, 1.0], None, None]}}
    plot_probes([*rows(HYBRID), *rows(broken, (200,))], "GF-MH", tmp_path / "a.png")
    assert math.isnan(panels["writes, layers pooled"][0][1][-1])
    assert math.isnan(panels["states"][0][1][-1])


def test_a_run_with_probe_rows_has_a_second_figure_and_one_without_has_not(tmp_path):
    step = {"kind": "step", "step": 1, "loss": 2.0, "grad_norm": 1.0}
    runs = []
    for name, log in (("probed", [step, *rows(HYBRID)]), ("plain", [step, *rows({"rho_rwkv": 0.1})])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        runs.append({"directory": str(tmp_path / name), "seed": 0, "name": name, "baselines": {}})
    plots, remarks = plot_runs(runs, tmp_path / "plots")
    assert [path.name for path in plots] == ["run-0-seed-0.png", "run-0-seed-0-state.png", "run-1-seed-0.png"]
    assert remarks == []
