"""Interactive charts: the numbers of a figure reach the page, none that matters is lost, and Vega takes every one."""

import json
import math
import re

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from harness.figures import LineFigure, short_number
from harness.interactive import (
    HEIGHT,
    LETTERS_OF_TITLE,
    MOST_POINTS,
    content_hash,
    line_chart,
    loss_chart,
    runtime,
    thin,
    training_charts,
)
from harness.training_figures import LossFigure


def values(panel, layer=0):
    name = panel["layer"][layer]["data"]["name"]
    return panel["datasets"][name]


def compiled(panel):
    """What Vega-Lite makes of a specification; it raises for one that it does not understand."""
    return vl_convert.vegalite_to_vega({**panel, "width": 400}, vl_version="6.4")


def test_every_point_of_a_figure_is_in_its_panel_with_its_line():
    lines = {"p": {"a": [(1, 2.0), (2, 3.0)], "b, c": [(1, 5.0)]}, "q": {"a": [(1, 0.5)]}}
    chart = line_chart(LineFigure("t", "lag", "share", lines))
    assert [[(row["line"], row["x"], row["y"]) for row in values(panel)] for panel in chart.panels] == [
        [("a", 1, 2.0), ("a", 2, 3.0), ("b, c", 1, 5.0)],
        [("a", 1, 0.5)],
    ]
    for panel in chart.panels:
        domain = panel["layer"][0]["encoding"]["y"]["scale"]["domain"]
        assert domain == [0.5, 5.0], "panels are compared on one scale"
        assert compiled(panel)["height"] == HEIGHT


def test_what_cannot_be_drawn_is_a_gap_and_counted():
    points = [(1, 1.0), (2, math.nan), (3, 0.0), (4, math.inf), (5, 10.0)]
    chart = line_chart(LineFigure("t", "x", "y", {"": {"a": points}}, y_log=True))
    assert [row["y"] for row in values(chart.panels[0])] == [1.0, None, None, None, 10.0]
    assert "3 values left out: not finite, or not positive on a logarithmic axis" in chart.text
    json.dumps(chart.panels, allow_nan=False)
    nothing = line_chart(LineFigure("t", "x", "y", {"": {"a": [(1, math.nan)]}}))
    assert nothing.panels == []
    assert "1 value left out" in nothing.text


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=13, max_size=90), st.integers(0, 89))
def test_thinning_keeps_ends_order_and_the_one_spike(heights, place):
    place %= len(heights)
    heights[place] = 99.0
    points = list(enumerate(heights))
    kept = thin(points, most=12)
    assert len(kept) <= 12
    places = [x for x, _ in kept]
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] == len(points) - 1
    # a number that is not finite counts as the highest of its stretch
    if not any(math.isnan(height) for height in heights):
        assert (place, 99.0) in kept


def test_every_other_point_would_have_lost_the_spike():
    points = [(x, 99.0 if x == 501 else 1.0) for x in range(1000)]
    assert (501, 99.0) in thin(points)
    assert (501, 99.0) not in points[::2]


def test_short_lines_are_left_alone_and_a_broken_stretch_stays_broken():
    short = [(x, float(x)) for x in range(MOST_POINTS)]
    assert thin(short) == short
    long = [(x, math.nan if x == 700 else 1.0) for x in range(5000)]
    assert any(math.isnan(y) for _, y in thin(long))


def test_losses_show_each_step_smoothed_validation_and_the_naive_models():
    raw = [(float(x), 9.0 if x == 3 else 6.0) for x in range(1, 50)]
    figure = LossFigure(
        "losses",
        {"seed 0": [*raw, (50, math.nan)]},
        {"seed 0": raw},
        {"seed 0": [(0, 8.0), (50, 6.0)]},
        {"unigram": 7.2},
    )
    chart = loss_chart(figure)
    [panel] = chart.panels
    each, smoothed, validation, answers, rule, name = range(6)
    assert len(values(panel, each)) == 50
    assert len(values(panel, smoothed)) == 49
    assert [row["y"] for row in values(panel, validation)] == [8.0, 6.0]
    assert {row["what"] for row in values(panel, answers)} == {"smoothed", "validation"}
    assert values(panel, rule) == values(panel, name) == [{"nats": 7.2, "model": "unigram 7.20"}]
    assert panel["layer"][each]["encoding"]["y"]["scale"]["domain"] == [6.0, 9.0]
    assert "validation (seed 0 8 to 6)" in chart.text
    assert "1 value left out: not finite" in chart.text
    compiled(panel)


def test_trainings_of_one_name_share_their_charts_and_a_lost_log_costs_itself_only(tmp_path):
    runs = []
    for seed, branches in ((0, True), (1, True), (2, False)):
        directory = tmp_path / str(seed)
        directory.mkdir()
        norms = {"grad_norm_rwkv": 1.0, "grad_norm_mamba": 0.0 if seed else 4.0} if branches else {}
        rows = [{"kind": "step", "step": i, "loss": 9 / i, "grad_norm": 2.0, **norms} for i in (1, 2)]
        rows += [{"kind": "eval", "step": 0, "val_loss": 9.0}]
        rows += [{"kind": "probe", "step": 2, "state_rms": {"s": [[3.0, 4.0], None]}, "gate_mean": [0.5, None]}]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        name = "GF-MH" if branches else "RWKV6"
        runs.append({"directory": str(directory), "seed": seed, "name": name, "baselines": {}})
    runs.append({"directory": str(tmp_path / "gone"), "seed": 7, "name": "GF-MH", "baselines": {}})
    charts = {chart.title: chart for chart in training_charts(runs)}
    assert list(charts) == [
        "GF-MH: loss by step", "GF-MH: gradient norm by step", "GF-MH: balance of the branches' gradients",
        "GF-MH: mixing gate by step", "GF-MH: size of the states by step",
        "RWKV6: loss by step", "RWKV6: gradient norm by step", "RWKV6: mixing gate by step",
        "RWKV6: size of the states by step",
    ]  # fmt: skip
    balance = values(charts["GF-MH: balance of the branches' gradients"].panels[0])
    assert [(row["line"], row["y"]) for row in balance] == [
        ("seed 0", 0.25), ("seed 0", 0.25), ("seed 1", None), ("seed 1", None)
    ]  # fmt: skip
    states = charts["GF-MH: size of the states by step"].panels
    assert [panel["title"] for panel in states] == ["s, seed 0", "s, seed 1"]
    assert [(row["line"], row["y"]) for row in values(states[0])] == [
        ("layer 0", pytest.approx(math.sqrt(12.5), rel=1e-4))
    ]
    for chart in charts.values():
        for panel in chart.panels:
            compiled(panel)


def test_a_logarithmic_axis_is_as_short_as_in_a_drawn_figure_and_a_point_tells_the_whole_number():
    sizes = [0.25, 1000.5, 2_103_970, 2_685_480, 999_999_999, 4.22e15]
    figure = LineFigure("t", "parameters", "y", {"": {"a": [(size, 1.0) for size in sizes]}}, x_log=True)
    panel = line_chart(figure).panels[0]
    svg = vl_convert.vegalite_to_svg({**panel, "width": 1600}, vl_version="6.4")
    written = re.findall(r"<text[^>]*>([^<]*)", svg)
    shown = [short_number(size) for size in sizes]
    assert written[: written.index("parameters")] == shown == ["0.25", "1000.5", "2.1M", "2.69M", "1B", "4.22P"]
    tips = [tip for layer in panel["layer"] for tip in layer["encoding"].get("tooltip", ())]
    [place] = [tip for tip in tips if tip["title"] == "parameters"]
    assert place["field"] == "x"
    assert "format" not in place, "all of the number"
    assert [row["x"] for row in values(panel, layer=1)] == sizes


def test_labels_of_a_narrow_logarithmic_axis_do_not_run_into_each_other():
    sizes = [2_103_970, 2_104_000, 2_685_480, 3_450_000, 5_268_304, 8_052_790]
    figure = LineFigure("t", "n", "y", {"": {"a": [(size, 1.0) for size in sizes]}}, x_log=True)
    svg = vl_convert.vegalite_to_svg({**line_chart(figure).panels[0], "width": 330}, vl_version="6.4")
    texts = re.findall(r"<text([^>]*)>([^<]*)", svg)
    written = [text for attributes, text in texts if 'opacity="0"' not in attributes]
    assert written[: written.index("n")] == ["2.1M", "2.69M", "3.45M", "5.27M", "8.05M"]


def test_vega_refuses_a_wrong_specification():
    panel = line_chart(LineFigure("t", "x", "y", {"": {"a": [(1, 2.0)]}})).panels[0]
    panel["layer"][0]["mark"]["type"] = "no such mark"
    with pytest.raises(ValueError, match="conversion failed"):
        compiled(panel)


def test_the_script_neither_ends_early_nor_loads_anything():
    script = runtime()
    assert len(script) < 1_500_000
    assert "</script" not in script
    assert "<!--" not in script
    assert "unpkg.com" not in script
    assert "jsdelivr" not in script
    assert content_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="


def test_a_long_name_of_the_axis_is_lines_that_fit_a_telephone():
    for name, lines in {"lag": 1, "arm: 0 untreated, 1 state gradients clipped, 2 higher learning rate": 2}.items():
        panel = line_chart(LineFigure("t", name, "y", {"": {"a": [(1, 2.0)]}})).panels[0]
        title = panel["layer"][0]["encoding"]["x"]["title"]
        assert len(title) == lines
        assert " ".join(title) == name
        assert max(map(len, title)) <= LETTERS_OF_TITLE
        compiled(panel)
