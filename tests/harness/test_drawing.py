"""Figures drawn by several processes are those drawn by one."""

import pytest

from harness import drawing
from harness.drawing import FIGURES_A_PROCESS, draw_all
from harness.figures import LineFigure, figure_to_json


def figures(directory, count):
    given = {}
    for index in range(count):
        figure = LineFigure(f"figure {index}", "steps", "nats", {"": {"a": [(0.0, 1.0), (1.0, float(index))]}})
        given[directory / f"{index}.png"] = figure_to_json(figure)
    nothing = LineFigure("nothing", "steps", "nats", {"": {"a": [(0.0, float("nan"))]}})
    return given | {directory / "nothing.png": figure_to_json(nothing)}


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)


@pytest.mark.slow
def test_several_processes_draw_what_one_draws(tmp_path, two_cores, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    count = 2 * FIGURES_A_PROCESS
    here = drawing._draw(figures(tmp_path / "here", count))
    monkeypatch.setattr(drawing, "_draw", lambda _: pytest.fail("drawn in this process"))
    there = draw_all(figures(tmp_path / "there", count))

    assert {path.name: remark for path, remark in there.items()} == {path.name: why for path, why in here.items()}
    assert [path.name for path, remark in there.items() if remark] == ["nothing.png"]
    assert "no point can be drawn" in here[tmp_path / "here" / "nothing.png"]
    for index in range(count):
        assert (tmp_path / "here" / f"{index}.png").read_bytes() == (tmp_path / "there" / f"{index}.png").read_bytes()


@pytest.mark.parametrize("command", [("false",), ("echo", "no json"), ("no-such-program",)])
def test_what_a_process_could_not_draw_is_drawn_here(tmp_path, two_cores, monkeypatch, command):
    monkeypatch.setattr(drawing, "COMMAND", command)
    remarks = draw_all(figures(tmp_path, 2 * FIGURES_A_PROCESS))

    assert [path.name for path, remark in remarks.items() if remark] == ["nothing.png"]
    assert (tmp_path / "0.png").is_file()


def test_a_few_figures_are_drawn_here(tmp_path, two_cores, monkeypatch):
    monkeypatch.setattr(drawing, "COMMAND", ("false",))
    monkeypatch.setattr(drawing, "_draw_elsewhere", lambda _: pytest.fail("a process was started"))
    assert len(draw_all(figures(tmp_path, 2 * FIGURES_A_PROCESS - 2))) == 2 * FIGURES_A_PROCESS - 1
