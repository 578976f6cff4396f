"""A session as a whole: prerequisites, dead workers, what was planned, and that nothing is counted twice."""

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from plugin_project import ROOT, Project, check_row

from harness.figures import figure_from_json

FOUR_TIMES = "\n@pytest.mark.parametrize('i', range(4))\n"
WORKERS = pytest.mark.parametrize("workers", ["0", "2"])


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Project(pytester)


def chain_project(project: Project) -> None:
    """A1 <- B1 <- C1, and D1 on its own; the file names would run the dependents first."""
    project.checks(
        check_row("A1"), check_row("B1", needs=["A1"]), check_row("C1", needs=["B1"]), check_row("D1"), check_row("W1")
    )
    passing = (
        "@check('{}')\n@pytest.mark.parametrize('i', range(3))\ndef test_{}(judge, i):\n    judge.holds('ran', True)\n"
    )
    project.suite(
        test_0_last=passing.format("C1", "c"),
        test_1_middle=passing.format("B1", "b"),
        test_2_first="@check('A1')\n@pytest.mark.parametrize('i', range(3))\ndef test_a(judge, i):\n"
        "    time.sleep(0.3)\n    judge('ratio', float(os.environ['RATIO']) if i == 1 else 1.0)\n",
        test_3_alone=passing.format("D1", "d"),
        test_4_needs_by_marker="@check('W1', needs='D1')\ndef test_w(judge):\n    judge.holds('ran', True)\n",
    )


@pytest.mark.slow
@WORKERS
def test_a_failed_prerequisite_blocks_all_that_rests_on_it(project, workers, monkeypatch):
    monkeypatch.setenv("RATIO", "0.01")
    chain_project(project)
    assert project.run("-n", workers).ret == 1
    assert project.statuses == {"A1": "FAIL", "B1": "MISSING", "C1": "MISSING", "D1": "PASS", "W1": "PASS"}
    notes = {record.check: record.note for record in project.report.records}
    assert notes["B1"] == "needs A1, which ended FAIL"
    assert notes["C1"] == "needs B1, which ended MISSING"


@pytest.mark.slow
@WORKERS
def test_prerequisites_that_pass_or_warn_block_nothing(project, workers, monkeypatch):
    monkeypatch.setenv("RATIO", "5.0")
    chain_project(project)
    assert project.run("-n", workers).ret == 0
    assert project.statuses == {"A1": "WARN", "B1": "PASS", "C1": "PASS", "D1": "PASS", "W1": "PASS"}
    assert len(project.report.records) == 13, "every record once"
    assert not [row for row in project.report.not_run if row.nodeid]


@pytest.mark.slow
def test_a_prerequisite_outside_of_the_run_is_named_in_the_record(project):
    chain_project(project)
    assert project.run("-k", "test_b").ret == 0
    assert {record.note for record in project.report.records} == {"prerequisite A1 not run here"}
    assert {(row.check, row.reason) for row in project.report.not_run} == {
        (check, "not selected in this run") for check in ("A1", "C1", "D1", "W1")
    }


@pytest.mark.slow
def test_under_another_distribution_a_dependent_refuses_instead_of_waiting(project, monkeypatch):
    monkeypatch.setenv("RATIO", "1.0")
    chain_project(project)
    # loadfile hands out the files in their own order: what rests on A1 comes first on one of two workers
    project.run("-n", "2", "--dist", "loadfile")
    assert project.statuses["A1"] == project.statuses["D1"] == "PASS"
    refusals = {record.note for record in project.report.records if record.status == "MISSING"}
    unfinished = "needs {}, which has not finished; checks wait for each other under --dist load alone"
    assert refusals <= {unfinished.format(check) for check in ["A1", "B1", "D1"]} | {"needs B1, which ended MISSING"}


@pytest.mark.slow
@WORKERS
def test_a_dead_worker_is_missing_evidence_and_never_exit_0(project, workers):
    project.suite(
        test_a1="@check('A1')\ndef test_dies(judge):\n    judge('ratio', 1.0)\n    os._exit(0)\n",
        test_b1=f"@check('B1'){FOUR_TIMES}def test_b(judge, i):\n    judge('ratio', 2.0)\n",
        test_h1=f"@check('H1'){FOUR_TIMES}def test_h(judge, i):\n    judge.holds('ran', True)\n",
    )
    result = project.run("-n", workers)
    if workers == "0":
        # the only process is gone: pytest itself could not report anything, and left no report behind
        assert not (project.report_dir / "report.json").exists()
        return
    assert result.ret == 11
    assert project.statuses == {"A1": "MISSING", "B1": "MISSING", "H1": "PASS"}
    assert "its worker process died" in {record.note for record in project.report.records}
    cases = ET.parse(project.report_dir / "junit.xml").getroot().iter("testcase")
    assert "test_dies" in {case.get("name") for case in cases if case.find("error") is not None}


@pytest.mark.slow
def test_an_item_that_vanishes_is_missing(project):
    conftest = project.pytester.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "\nimport pytest\n@pytest.hookimpl(tryfirst=True)\ndef pytest_runtest_protocol(item):\n"
        + "    return True if 'vanishes' in item.nodeid else None\n"
    )
    project.suite(test_a1="@check('A1')\ndef test_vanishes(judge):\n    judge('ratio', 1.0)\n")
    result = project.run()
    assert result.ret == 11
    assert project.statuses == {"A1": "MISSING"}
    assert [record.note for record in project.report.records] == ["planned, and never reported"]
    errors = list(ET.parse(project.report_dir / "junit.xml").getroot().iter("error"))
    assert "A1 MISSING" in errors[0].get("message", "")


@pytest.mark.slow
def test_an_interrupted_run_keeps_pytests_code_and_says_incomplete(project):
    project.suite(
        test_a1="@check('A1')\ndef test_1(judge):\n    judge('ratio', 1.0)\n"
        "@check('A1')\ndef test_2(judge):\n    raise KeyboardInterrupt\n"
    )
    assert project.run().ret == 2
    assert (project.report.outcome, project.report.exit_code) == ("INCOMPLETE", 2)
    assert project.statuses == {"A1": "MISSING"}


@pytest.mark.slow
def test_a_failing_plain_test_in_the_same_session_fails_it(project):
    project.suite(test_a1="@check('A1')\ndef test_1(judge):\n    judge.invalid('why')\n")
    plain = project.pytester.makepyfile(test_plain="def test_plain():\n    assert False\n")
    assert project.run(str(plain)).ret == 1
    assert project.report.outcome == "INCOMPLETE"


@pytest.mark.slow
def test_a_test_without_a_check_is_refused_under_suites(project):
    project.suite(test_a1="def test_1():\n    pass\n")
    result = project.run()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*a test under suites/ measures a check; mark it*"])


@pytest.mark.slow
@WORKERS
def test_an_unknown_check_id_never_passes(project, workers):
    project.suite(test_a1="@check('A11')\ndef test_1(judge):\n    pass\n")
    result = project.run("-n", workers)
    assert result.ret != 0
    if workers == "0":
        assert result.ret == 4
        result.stderr.fnmatch_lines(["*no check has the id 'A11'; did you mean A1*"])


@pytest.mark.slow
def test_projects_own_tests_see_nothing_of_the_plugin(project):
    project.pytester.makepyfile(
        test_plain="import os\ndef test_plain():\n    assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'\n"
    )
    project.suite(test_a1="@check('A1')\ndef test_1(judge):\n    judge('ratio', 1.0)\n")
    result = project.pytester.runpytest_subprocess("test_plain.py", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert "groundthink" not in result.stdout.str()
    assert not (project.pytester.path / "reports").exists()
    assert not (project.pytester.path / ".groundthink").exists()


@pytest.mark.slow
def test_published_runs_reach_the_report_once(project, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    row = '{"kind": "step", "step": %d, "loss": 2.0, "grad_norm": 1.0}\n'
    (run / "metrics.jsonl").write_text("".join(row % step for step in range(1, 9)))
    project.suite(
        test_a1="from pathlib import Path\n@check('A1')\n@pytest.mark.parametrize('i', range(4))\n"
        "def test_1(judge, publish_run, i):\n"
        f"    publish_run(Path({str(run)!r}), seed=0, name='HY', baselines={{'u': 7.0}})\n"
        "    judge('ratio', 1.0)\n"
    )
    assert project.run("-n", "2").ret == 0
    assert project.report.plots == ["plots/run-0-seed-0.png"]
    assert (project.report_dir / "plots" / "run-0-seed-0.png").stat().st_size > 1000


FIGURE = (
    "from harness.figures import LineFigure\n@check('A1')\n@pytest.mark.parametrize('i', range(4))\n"
    "def test_1(judge, publish_figure, i):\n"
    "    publish_figure({name}, LineFigure('T', 'x', 'y', {{'': {{'a': [(0, i), (1, 2)]}}}}))\n"
    "    judge('ratio', 1.0)\n"
)


@pytest.mark.slow
@WORKERS
def test_published_figures_reach_the_report_from_every_worker(project, workers):
    project.suite(test_a1=FIGURE.format(name="f'figure-{i}'"))
    assert project.run("-n", workers).ret == 0
    figures = project.report.figures
    assert [(figure.name, figure.check, figure.image) for figure in figures] == [
        (f"figure-{i}", "A1", f"plots/figure-{i}.png") for i in range(4)
    ]
    for i, figure in enumerate(figures):
        assert (project.report_dir / figure.image).stat().st_size > 1000
        assert figure_from_json((project.report_dir / figure.data).read_text()).panels[""]["a"] == [(0, i), (1, 2)]
    assert (project.report_dir / "decision.html").read_text().count("data:image/png") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [("'one'", "the figure 'one' is published by"), ("'A b'", "figure name 'A b': use lower-case letters")],
)
def test_a_figure_needs_a_name_of_its_own(project, name, reason):
    project.suite(test_a1=FIGURE.format(name=name))
    assert project.run().ret == 11
    assert project.statuses == {"A1": "INVALID"}
    assert any(reason in record.note for record in project.report.records)


@pytest.mark.slow
def test_a_baseline_is_shown_and_changes_no_status(project, monkeypatch):
    project.suite(
        test_a1="@check('A1')\ndef test_1(judge):\n"
        "    value = float(os.environ['RATIO'])\n    judge('ratio', value, ci=(value - .1, value + .1))\n"
    )
    monkeypatch.setenv("RATIO", "1.0")
    assert project.run().ret == 0
    project.report_dir.rename(project.pytester.path / "earlier")
    monkeypatch.setenv("RATIO", "2.0")
    result = project.run("--baseline", "earlier")
    assert result.ret == 0
    assert project.statuses == {"A1": "PASS"}
    (change,) = project.report.comparison.changes
    assert (change.verdict, change.delta) == ("changed", 1.0)
    result.stdout.fnmatch_lines(["since earlier: 1 numbers compared: 1 changed*", "A1.ratio*2*1*+1*"])
    assert "## Since earlier" in (project.report_dir / "decision.md").read_text()


@pytest.mark.slow
def test_a_check_that_times_the_machine_runs_last_and_alone(project, tmp_path):
    """Every item notes when its body began and ended; nothing overlaps with the check that asked to be alone."""
    project.checks(check_row("A1"), check_row("B1", needs=["A1"], alone="true"))
    body = (
        "def test_{0}(judge, i):\n    began = time.time()\n    time.sleep(0.3)\n"
        f"    with open({str(tmp_path / 'times')!r}, 'a') as log:\n"
        "        log.write(f'{0} {{began}} {{time.time()}}\\n')\n"
        "    judge.holds('ran', True)\n"
    )
    suite = "@check('{1}')\n@pytest.mark.parametrize('i', range(3))\n"
    project.suite(test_0_timing=suite.format("", "B1") + body.format("timing"),
                  test_1_other=suite.format("", "A1") + body.format("other"))  # fmt: skip
    assert project.run("-n", "2").ret == 0
    spans = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    timing = sorted((float(began), float(ended)) for name, began, ended in spans if name == "timing")
    other = [(float(began), float(ended)) for name, began, ended in spans if name == "other"]
    assert (len(timing), len(other)) == (3, 3)
    assert max(ended for _, ended in other) <= timing[0][0]
    assert all(first[1] <= second[0] for first, second in pairwise(timing))


def test_a_study_runs_only_where_it_is_named(project):
    project.checks(check_row("A1"), check_row("B1", study="true"))
    holds = "@check('{0}')\ndef test_{1}(judge):\n    judge.holds('ran', True)\n"
    project.suite(test_a1=holds.format("A1", "a"), test_b1=holds.format("B1", "b"))
    assert project.run().ret == 0
    assert set(project.statuses) == {"A1"}
    assert project.run("suites/gates/test_b1.py").ret == 0
    assert set(project.statuses) == {"A1", "B1"}
