"""Where the time of a decision went: read off its report and its store."""

import json

import pytest

from benchmarks.stages import lines, main, stages, trainings
from fixtures.plan import GPU_TOKENS_A_SECOND, known_pace, parameters_times_tokens
from harness.beginnings import Origin
from harness.execution import Execution
from harness.plugin.lifecycle import GPU_PEAK
from harness.store import Store

JUNIT = f"""<testsuites><testsuite>
<testcase classname="suites.gates.test_g1" name="a" time="1.5"><properties>
<property name="{GPU_PEAK}" value="{3 * 2**20}"/></properties></testcase>
<testcase classname="suites.state.test_s0" name="b" time="2.25"/>
<testcase classname="suites.gates.test_g1" name="c" time="0.5"><properties>
<property name="other" value="x"/><property name="{GPU_PEAK}" value="{5 * 2**20}"/></properties></testcase>
</testsuite></testsuites>"""


def train(store, seed, steps, began, *, gpu="NVIDIA H200", origin=None):
    def build(directory):
        (directory / "began.txt").write_text(f"2026-01-01T00:0{began}:00+00:00")
        if gpu is not None:
            Execution("alone", "why", 1, 10.0, None, gpu).write(directory)
        if origin is not None:
            Origin("an earlier run", 500, origin).write(directory)

    fields = {
        "config": {"train": {"steps": steps, "batch_tokens": {"cuda": 1000, "cpu": 10}}},
        "subject": {"registry": "GF-MH"}, "scale": "8M", "seed": seed, "patch": "none", "device": "cuda",
    }  # fmt: skip
    store.get_or_build("runs", fields, build)


@pytest.fixture
def run(tmp_path):
    report, store = tmp_path / "report", Store(tmp_path / "store")
    report.mkdir()
    (report / "junit.xml").write_text(JUNIT)
    told = {"command": "pytest suites", "headline": "GO", "provenance": {"wall_s": 61.5}}
    (report / "report.json").write_text(json.dumps(told))
    train(store, 1, 500, began=2)
    train(store, 0, 500, began=1)
    train(store, 0, 1000, began=3, origin=400)
    return report, store.root


def test_items_of_a_file_are_summed_and_their_memory_is_the_largest(run):
    found = stages(run[0])
    assert [(s.name, s.seconds, s.peak) for s in found] == [
        ("gates.test_g1", 2.0, 5 * 2**20),
        ("state.test_s0", 2.25, None),
    ]


def test_seeds_stand_together_and_what_was_shared_is_not_counted_twice(run):
    first, second = trainings(run[1])
    assert (first.name, first.seeds, first.steps) == ("GF-MH 8M, 500 steps", [0, 1], 500)
    assert first.gpu == pytest.approx(2 * 500 * 10 / 1000)
    assert first.predicted == pytest.approx(2 * 500 * 1000 / GPU_TOKENS_A_SECOND["NVIDIA H200"])
    assert len(first.wall) == 2
    assert (second.steps, second.gpu) == (600, pytest.approx(6.0))


def test_of_an_unknown_gpu_nothing_is_predicted(run):
    train(Store(run[1]), 5, 500, began=4, gpu="another GPU")
    train(Store(run[1]), 6, 700, began=5, gpu=None)
    first, _, third = trainings(run[1])
    assert (first.predicted, first.gpu) == (None, pytest.approx(15.0))
    assert (third.predicted, third.gpu) == (None, None)
    assert "| all | | |  |  | |" in lines(*run)[-1]


def test_the_page_has_the_command_and_both_tables(run):
    text = "\n".join(lines(*run))
    assert "`pytest suites`" in text
    assert "| gates.test_g1 | 2.0 | 5 |" in text
    assert "| state.test_s0 | 2.2 |  |" in text
    assert "| GF-MH 8M, 500 steps | 0, 1 | 500 | 1 | 10 |" in text


def test_a_wrong_directory_is_bad_usage(run, capsys):
    assert main([str(run[0]), str(run[0])]) == 2
    assert "give the directory of a report" in capsys.readouterr().err
    assert main([str(run[0]), str(run[1])]) == 0


@pytest.mark.parametrize("file", ["report.json", "junit.xml"])
def test_a_damaged_report_is_told_in_a_line(run, capsys, file):
    (run[0] / file).write_text("{")
    assert main([str(run[0]), str(run[1])]) == 2
    assert str(run[0]) in capsys.readouterr().err


def test_the_pace_of_a_gpu_that_nobody_timed_is_unknown():
    assert known_pace(None) is None
    assert known_pace("another GPU") is None
    assert known_pace("NVIDIA H200") == parameters_times_tokens("8M", GPU_TOKENS_A_SECOND["NVIDIA H200"])
