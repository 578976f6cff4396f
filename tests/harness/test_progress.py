"""Heartbeats of trainings, and the one line that a session makes of them."""

import time
from dataclasses import replace

import pytest

from harness.graduation.plan import Plan, PlannedTraining
from harness.plugin import pace
from harness.plugin.pace import Pace
from harness.progress import HEARTBEATS, Heartbeat, HeartbeatFile, heartbeats, make_progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("harness.progress.time.time", lambda: now[0])
    return now


def beat(directory, label="GF-MH 3.5M, seed 0", **fields):
    base = {"total": 100, "first": 0, "step": 50, "note": "loss 6.100", "began": 1000.0, "at": 1060.0, "ended": False}
    writer = HeartbeatFile(directory, label)
    writer._write(Heartbeat(label=label, **{**base, **fields}))


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_says_where_a_training_stands(tmp_path, clock):
    progress = HeartbeatFile(tmp_path, "a")
    progress.begin(100, 20)
    assert heartbeats(tmp_path) == [Heartbeat("a", 100, 20, 20, "", 1000.0, 1000.0)]
    assert heartbeats(tmp_path)[0].seconds_left is None
    clock[0] += 30
    progress.update(40, "loss 3.000")
    (found,) = heartbeats(tmp_path)
    assert (found.step, found.note, found.at) == (40, "loss 3.000", 1030.0)
    # 20 steps in 30 s: steps of an earlier process say nothing of the pace
    assert found.seconds_left == pytest.approx(60 * 30 / 20)
    progress.end()
    assert heartbeats(tmp_path)[0].ended


def test_it_is_written_at_most_once_a_second(tmp_path, clock, monkeypatch):
    progress = HeartbeatFile(tmp_path, "a")
    progress.begin(100, 0)
    written = []
    write = progress._write
    monkeypatch.setattr(progress, "_write", lambda found: (written.append(found.step), write(found)))
    for step in range(1, 31):
        clock[0] += 0.125
        progress.update(step, "")
    assert written == [8, 16, 24]


def test_every_training_has_a_file_of_its_own_and_none_is_half_written(tmp_path, clock):
    for label in ("b", "a", "a/../c"):
        HeartbeatFile(tmp_path, label).begin(10, 0)
    assert [found.label for found in heartbeats(tmp_path)] == ["a", "a/../c", "b"]
    assert len(list(tmp_path.iterdir())) == 3, "no temporary file is left"
    assert heartbeats(tmp_path / "gone") == []


def test_outside_of_a_session_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(HEARTBEATS, raising=False)
    assert make_progress("x") is None
    monkeypatch.setenv(HEARTBEATS, str(tmp_path))
    progress = make_progress("x")
    progress.begin(3, 0)
    assert [found.label for found in heartbeats(tmp_path)] == ["x"]


# --- the line of the session ------------------------------------------------------------------------------------------


def planned(*seconds, checks=8):
    """A plan of trainings ``t0``, ``t1``, ... and of so many checks of one seed, 5 s each."""
    trainings = [PlannedTraining(f"t{index}", 100, 10, False, False, cost) for index, cost in enumerate(seconds)]
    return Plan("m", "3.5M", "8M", "cpu", 1, "c", [("A", "a")] * checks, [], [], trainings, [])


@pytest.fixture
def paced(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.plugin.pace.time.time", lambda: 1000.0)
    made = []

    def make(plan=None, done=12, tests=40):
        made.append(Pace(tmp_path, lambda: (done, tests), plan))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_the_line_says_what_is_done_what_runs_and_how_long(paced, tmp_path):
    beat(tmp_path, "t0")
    beat(tmp_path, "t1", step=0, note="")
    beat(tmp_path, "over", ended=True)
    # 8 checks of 5 s, 30 % of them done: 12 s. Half a training: 50 s. 62 s of work in as many: as planned
    assert paced(planned(100.0, 200.0, 300.0)).line(1062.0) == (
        "groundthink: 12 of 40 tests; t0: step 50 of 100 (60 s), loss 6.100; t1: step 0 of 100; about 10 min left"
    )


def test_without_a_plan_no_time_is_promised(paced):
    assert paced().line(1060.0) == "groundthink: 12 of 40 tests"


def test_it_never_promises_less_than_a_running_training_needs(paced, tmp_path):
    beat(tmp_path, step=10)
    assert paced(planned(1.0)).line(1060.0).endswith("; about 9 min left"), "90 steps at 6 s each"


def test_a_session_slower_than_its_plan_is_forecast_at_its_own_pace(paced, tmp_path):
    # what was planned to take 540 s took 1,140: twice as long, by the plan's word for one minute
    beat(tmp_path, "t0", step=100, ended=True)
    line = paced(planned(540.0, 540.0, checks=0), done=20).line(1000.0 + 1140.0)
    assert line.endswith("; about 18 min left"), "540 s more at (1140 + 60) / (540 + 60)"


def test_work_that_has_not_begun_counts_however_late_it_is(paced, tmp_path):
    beat(tmp_path, "t0", step=100, ended=True)
    assert paced(planned(100.0, 100.0, checks=0), done=39).line(9000.0).endswith("; about 84 min left"), (
        "100 s more at (8000 + 60) / (100 + 60)"
    )


def test_steps_of_an_earlier_process_are_neither_left_nor_done_by_this_one(paced, tmp_path):
    # 20 of 100 s of work in 20 s, 30 left
    beat(tmp_path, "t0", first=50, step=70, note="", began=1000.0, at=1020.0)
    assert paced(planned(100.0, checks=0), done=0).line(1020.0).endswith("; about 30 s left")


def test_steps_that_a_shorter_training_does_are_no_part_of_the_cost(paced, tmp_path):
    # 100 s for the 50 steps of its own: 20 of them in 40 s, 60 s left
    plan = planned(100.0, checks=0)
    plan = replace(plan, trainings=[replace(plan.trainings[0], shared=50)])
    beat(tmp_path, "t0", first=50, step=70, note="", began=1000.0, at=1040.0)
    assert paced(plan, done=0).line(1040.0).endswith("; about 60 s left")


def test_a_session_that_has_done_all_has_nothing_left(paced):
    assert paced(planned(), done=40).line(1060.0).endswith("; about 0 s left")


def test_a_plan_of_unknown_cost_promises_nothing(paced):
    assert paced(planned(None)).line(1060.0) == "groundthink: 12 of 40 tests"


def test_the_lines_reach_the_terminal_and_stop(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pace, "EVERY_S", 0.01)
    running = Pace(tmp_path, lambda: (1, 2), None)
    running.start()
    deadline = time.monotonic() + 20
    said = ""
    while "groundthink: 1 of 2 tests" not in said and time.monotonic() < deadline:
        time.sleep(0.02)
        said += capfd.readouterr().err
    running.stop()
    assert "groundthink: 1 of 2 tests" in said
    assert not running._thread.is_alive()
