"""Figures: their numbers survive the way to the report, and what is drawn leaves nothing out in silence."""

import math

import numpy as np
import pytest

from harness.figures import (
    COLOURS,
    DASHES,
    FigureError,
    LineFigure,
    MatrixFigure,
    Passage,
    TextFigure,
    _styles,
    describe_figure,
    draw_figure,
    figure_from_json,
    figure_to_json,
    short_number,
)


def lines(*ys, **axes):
    return LineFigure("title", "x", "y", {"": {"a": [(i + 1, y) for i, y in enumerate(ys)]}}, **axes)


@pytest.mark.parametrize(
    "figure",
    [
        lines(1.0, 0.1 + 0.2, math.inf, -math.inf, y_log=True),
        MatrixFigure(
            "title", "x", "y", "nats", [[1.0, -math.inf], [2.0, 1e-300]], ["0", "1"], ["a", "b"], diverging=True
        ),
        TextFigure("title", [Passage("who", "asked", "said\n|<b>")]),
    ],
    ids=["lines", "matrix", "text"],
)
def test_the_numbers_survive_json(figure):
    assert figure_from_json(figure_to_json(figure)) == figure


def test_nan_survives_json_too():
    values = figure_from_json(figure_to_json(lines(math.nan, 1.0))).panels[""]["a"]
    assert math.isnan(values[0][1])
    assert values[1] == (2, 1.0)


def test_numpy_numbers_are_taken_as_floats():
    figure = LineFigure("t", "x", "y", {"": {"a": [(np.int64(1), np.float32(0.5))]}})
    assert figure.panels[""]["a"] == [(1.0, 0.5)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"values": [[1.0], [1.0, 2.0]]}, r"rows of \[1, 2\] values"),
        ({"x_ticks": ["only one"]}, "1 x_ticks for 2 values"),
        ({"y_ticks": ["a", "b", "c"]}, "3 y_ticks for 2 values"),
    ],
)
def test_a_matrix_that_does_not_fit_its_labels_is_refused(change, reason):
    good = {"values": [[1.0, 2.0], [3.0, 4.0]], "x_ticks": ["a", "b"]}
    figure_to_json(MatrixFigure("t", "x", "y", "v", **good))
    with pytest.raises(FigureError, match=reason):
        figure_to_json(MatrixFigure("t", "x", "y", "v", **{**good, **change}))


def drawn_titles(figure, path, monkeypatch):
    from matplotlib.figure import Figure

    said = []
    suptitle = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **kw: said.append(text) or suptitle(self, text, **kw))
    draw_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    return said


@pytest.mark.parametrize(
    ("figure", "remark"),
    [
        (lines(1.0, 2.0), None),
        (lines(1.0, math.nan, math.inf), "2 values left out: not finite"),
        (lines(1.0, 0.0, -3.0, y_log=True), "2 values left out: not finite, or not positive on a logarithmic axis"),
        (MatrixFigure("title", "x", "y", "v", [[1.0, math.nan]]), "1 value left out: not finite"),
        (MatrixFigure("title", "x", "y", "v", [[0.0, 0.0]], diverging=True), None),
    ],
)
def test_what_is_left_out_is_said(figure, remark, tmp_path, monkeypatch):
    assert drawn_titles(figure, tmp_path / "f.png", monkeypatch) == ["title" + (f"\n{remark}" if remark else "")]


@pytest.mark.parametrize(
    "figure", [lines(math.nan), lines(), lines(-1.0, y_log=True), MatrixFigure("t", "x", "y", "v", [])]
)
def test_a_figure_without_a_point_is_refused(figure, tmp_path):
    with pytest.raises(FigureError, match="can be drawn"):
        draw_figure(figure, tmp_path / "f.png")
    assert not (tmp_path / "f.png").exists()


def test_the_legend_covers_nothing_and_stays_inside(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: kept.append(self))
    branches = {f"{branch}, head {head}": [(1, head + 1), (2, 1)] for branch in ("rwkv", "mamba") for head in range(4)}
    draw_figure(LineFigure("t", "x", "y", {f"layer {layer}": branches for layer in range(4)}), tmp_path / "f.png")
    (canvas,) = kept
    canvas.draw_without_rendering()
    legend = canvas.legends[0].get_window_extent()
    assert len(canvas.legends[0].get_texts()) == 8
    assert legend.x0 >= 0
    assert legend.x1 <= canvas.bbox.x1
    assert legend.y0 >= -1
    for axes in canvas.axes:
        assert not axes.get_tightbbox().overlaps(legend)


def ticks(figure, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: kept.append(self))
    draw_figure(figure, tmp_path / "f.png")
    kept[0].draw_without_rendering()
    return [tick.get_text() for axes in kept[0].axes[:1] for tick in axes.get_xticklabels() if tick.get_text()]


def test_an_axis_of_layers_has_no_half_layer(tmp_path, monkeypatch):
    assert not any("." in text for text in ticks(lines(1.0, 2.0, 3.0, 4.0), tmp_path, monkeypatch))


def test_a_logarithmic_axis_names_the_places_that_were_measured(tmp_path, monkeypatch):
    panels = {"": {"a": [(2**i, 1.0) for i in range(3, 10)]}}
    figure = LineFigure("t", "tokens", "y", panels, x_log=True)
    assert ticks(figure, tmp_path, monkeypatch) == ["8", "16", "32", "64", "128", "256", "512"]


def test_labels_of_a_logarithmic_axis_are_short_and_do_not_run_into_each_other(tmp_path, monkeypatch):
    # sizes of models, and a law that is drawn at places between them
    sizes = [2_103_970, 2_104_000, 2_390_000, 2_685_480, 2_690_000, 3_450_000, 5_268_304, 8_052_790]
    found = ticks(LineFigure("t", "n", "y", {"": {"a": [(n, 1.0) for n in sizes]}}, x_log=True), tmp_path, monkeypatch)
    assert found == ["2.1M", "2.69M", "3.45M", "5.27M", "8.05M"]
    places = [(n, 1.0) for n in (0.25, 65_536, 131_072, 3e9, 4.22e15)]
    found = ticks(LineFigure("t", "n", "y", {"": {"a": places}}, x_log=True), tmp_path, monkeypatch)
    assert found == ["0.25", "65536", "3B", "4.22P"]


def test_a_label_has_the_unit_of_the_number_that_it_shows():
    places = (99_999, 131_072, 999_499, 999_999, 999_999_999)
    assert [short_number(place) for place in places] == ["100k", "131k", "999k", "1M", "1B"]


def test_any_two_lines_look_different():
    labels = [str(i) for i in range(len(COLOURS) * len(DASHES))]
    looks = {(style["color"], style["linestyle"]) for style in _styles(labels).values()}
    assert len(looks) == len(labels)


def test_the_text_for_those_who_do_not_see_it():
    assert describe_figure(lines(2.0, math.nan, 1.0)) == "title: y over x. From first to last point: a: 2 to 1."
    matrix = MatrixFigure("T", "layer", "branch", "nats", [[0.5, math.nan], [-1.0, 2.0]])
    assert describe_figure(matrix) == "T: nats by branch and layer (2 by 2), from -1 to 2."


def numbered(values, tmp_path, monkeypatch, **ticks):
    """The numbers in the cells of a matrix, after a check that each lies inside its own."""
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: kept.append(self))
    draw_figure(MatrixFigure("title", "x", "y", "nats", values, **ticks), tmp_path / "f.png")
    kept[0].draw_without_rendering()
    axes = kept[0].axes[0]
    for text in axes.texts:
        box, (column, row) = text.get_window_extent(), text.get_position()
        (left, top), (right, bottom) = axes.transData.transform([(column - 0.5, row - 0.5), (column + 0.5, row + 0.5)])
        assert left <= box.x0
        assert box.x1 <= right
        assert bottom <= box.y0
        assert box.y1 <= top
    return [text.get_text() for text in axes.texts]


def test_cells_tell_apart_what_differs_in_the_third_digit(tmp_path, monkeypatch):
    found = numbered([[0.514, 0.508], [1234.0, -1.2345e-5]], tmp_path, monkeypatch)
    assert found == ["0.514", "0.508", "1.23e+03", "-1.23e-05"]


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 2), (10, 13), (11, 11), (26, 5)])
def test_numbers_fit_in_their_cells(rows, columns, tmp_path, monkeypatch):
    values = [[-1.23456e-5 * (row + column + 1) for column in range(columns)] for row in range(rows)]
    ticks = {"y_ticks": [f"layer {row}, mamba" for row in range(rows)]}
    assert len(numbered(values, tmp_path, monkeypatch, **ticks)) == rows * columns


@pytest.mark.parametrize(("rows", "columns"), [(1, 130), (130, 1), (2, 65)])
def test_numbers_that_would_be_too_small_are_not_written(rows, columns, tmp_path, monkeypatch):
    assert numbered([[0.123] * columns] * rows, tmp_path, monkeypatch) == []
