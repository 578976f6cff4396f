"""Options: what is accepted, what is refused with exit 4, and what --explain says."""

import sys
from dataclasses import replace

import pytest

# here and not in a test: pytester forgets modules that are first imported while it is in use, and torch loads only once
import torch
from plugin_project import ROOT, Project

from harness.checks import SCALES
from harness.comparison import Metrics
from harness.errors import HarnessError
from harness.plugin.settings import Settings, log_states_override, parse_overrides, scale_of, seeds_of


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    project = Project(pytester)
    project.suite(test_a1="@check('A1')\ndef test_it(judge, settings):\n    judge.holds('ran', True)\n")
    return project


MARKED = (*SCALES, "slow", "gpu")


@pytest.mark.parametrize(
    ("markexpr", "scale"),
    [
        ("", "3.5M"),
        ("tiny", "3.5M"),
        ("small", "8M"),
        ("medium and not slow", "30M"),
        ("not slow", "3.5M"),
        ("large", "125M"),
    ],
)
def test_the_marker_expression_chooses_the_scale(markexpr, scale):
    assert scale_of(markexpr, MARKED) == scale


@pytest.mark.parametrize("markexpr", ["tiny or small", "not tiny", "not (small)", "large and not medium"])
def test_an_expression_that_chooses_no_single_scale_is_refused(markexpr):
    with pytest.raises(HarnessError, match="Give one of tiny"):
        scale_of(markexpr, MARKED)


def test_a_word_that_is_no_marker_is_refused_with_the_near_one():
    with pytest.raises(HarnessError, match="no marker is called 'tinny'; did you mean tiny"):
        scale_of("tinny", MARKED)


def test_overrides_keep_what_was_typed():
    assert parse_overrides(["train.steps=2000", "data.corpus=a=b"]) == {"train.steps": "2000", "data.corpus": "a=b"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--log-states"], {"monitors.probe_every": "10"}),
        (["--log-states=3"], {"monitors.probe_every": "3"}),
        (["--set", "train.steps=60", "--log-states", "7"], {"train.steps": "60", "monitors.probe_every": "7"}),
    ],
)
def test_log_states_sets_how_often_a_training_is_probed(project, arguments, expected):
    project.suite(
        test_a1="@check('A1')\ndef test_it(judge, settings):\n"
        f"    judge.holds('set', settings.overrides == {expected})\n"
    )
    assert project.run(*arguments).ret == 0
    assert project.report.records[0].status == "PASS"


@pytest.mark.parametrize("every", ["0", "-1", "2.5", "suites/a"])
def test_log_states_refuses_what_is_no_number_of_steps(every):
    with pytest.raises(
        HarnessError, match=r"--log-states .*write --log-states=10, or give --log-states after the paths"
    ):
        log_states_override(every)


def test_log_states_and_the_key_it_sets_are_not_both_given():
    with pytest.raises(HarnessError, match=r"monitors\.probe_every is given twice"):
        parse_overrides(["monitors.probe_every=5", *log_states_override("10")])


@pytest.mark.parametrize("pair", ["train.steps", "=3", "steps=3", "train.steps=", "train..steps=3", "Train.steps=3"])
def test_a_malformed_override_is_refused_with_an_example(pair):
    with pytest.raises(HarnessError, match=r"--set train\.steps=2000"):
        parse_overrides([pair])


def test_an_override_given_twice_is_refused():
    with pytest.raises(HarnessError, match="given twice"):
        parse_overrides(["train.lr=1", "train.lr=2"])


def test_seeds_follow_on_the_first():
    assert seeds_of("3") == (0, 1, 2)
    assert seeds_of("3", "7") == (7, 8, 9)
    for wrong in ("-1", "1.5", "x", ""):
        with pytest.raises(HarnessError, match="--first-seed"):
            seeds_of("3", wrong)
    for wrong in ("0", "-1", "1.5", "x", ""):
        with pytest.raises(HarnessError, match="at least 1"):
            seeds_of(wrong)


def test_the_rerun_command_names_everything_that_was_not_a_default(tmp_path):
    settings = Settings(
        model="my model.py:make",
        checkpoint=tmp_path,
        corpus="markov",
        device="cpu",
        scale="8M",
        seeds=(0, 1),
        overrides={"train.steps": "9"},
        store=tmp_path,
        report=tmp_path,
        fail_on_warn=True,
    )
    assert settings.command(["suites/a.py"]) == (
        f"pytest suites/a.py -m small --model 'my model.py:make' --checkpoint {tmp_path} --corpus markov --device cpu "
        f"--seeds 2 --set train.steps=9 --store {tmp_path} --fail-on-warn"
    )
    assert "--seeds 2 --first-seed 5" in replace(settings, seeds=(5, 6)).command(["suites/a.py"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nope"], "--model nope: no such model"),
        (["-m", "tiny or small"], "names 2 scales"),
        (["--seeds", "0"], "--seeds 0: give a whole number"),
        (["--first-seed", "last"], "--first-seed last: give a whole number"),
        (["--set", "steps=3"], "is not SECTION.KEY=VALUE"),
        (["--checkpoint", "gone"], "--checkpoint gone: there is no such file"),
        (["--store", "conftest.py/store"], "--store conftest.py/store: cannot write there"),
        (["--report", "conftest.py/out"], "--report conftest.py/out: cannot write there"),
        (["--baseline", "gone"], "--baseline gone: cannot read gone"),
        (["--baseline", "conftest.py"], "conftest.py does not hold the numbers of a run"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--explain", "A2"], "no check has the id 'A2'; did you mean A1"),
    ],
)
def test_bad_usage_is_exit_4_and_one_clear_message(project, arguments, message):
    result = project.run(*arguments)
    assert result.ret == 4
    assert message in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


@pytest.mark.slow
def test_a_baseline_of_another_scale_is_bad_usage(project):
    metrics = Metrics(model="GF-MH", scale="8M", corpus="sotu", metrics=[])
    (project.pytester.path / "metrics.json").write_text(metrics.model_dump_json())
    result = project.run("--baseline", "metrics.json")
    assert result.ret == 4
    assert "was measured at 8M, this run is at 3.5M" in result.stderr.str()
    assert "run with -m small" in result.stderr.str()


@pytest.mark.slow
def test_asking_for_a_gpu_that_is_not_there_is_bad_usage(project):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = project.run("--device", "cuda")
    assert result.ret == 4
    assert "torch sees no GPU here; give --device cpu" in result.stderr.str()


@pytest.mark.slow
def test_explain_says_what_is_measured_and_how_sure_the_limits_are(project):
    result = project.pytester.runpytest_subprocess("--explain", "b1")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "B1  title of B1",
            "claim *",
            "needs         A1 (title of A1)*",
            "*ratio: pass >= 1 nat, warn >= 0.5 nat",
            "*calibrated; source*",
        ]
    )
    assert "uncalibrated" not in result.stdout.str()


@pytest.mark.slow
def test_the_scale_selects_what_is_demanded_there(project):
    assert project.run("-m", "large").ret == 5
    assert project.run("-m", "small").ret == 0
    assert project.report.scale == {"from": "8M", "to": None}


@pytest.mark.slow
def test_neither_help_nor_collection_imports_anything_heavy(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = (
        "import sys, harness.plugin.options, harness.plugin.lifecycle, harness.plugin.collection, harness.plugin.runs\n"
        "heavy = {'torch', 'scipy', 'rich', 'jinja2', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert pytester.run(sys.executable, "-c", code).ret == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "processes", "spread"), [((), 1, False), (("-n", "0"), 1, False), (("-n", "1"), 2, True)]
)
def test_a_session_with_workers_is_spread_in_every_process(pytester, monkeypatch, arguments, processes, spread):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(
        """
        from pathlib import Path
        from harness.plugin.options import is_spread

        def pytest_sessionstart(session):
            with Path("told").open("a") as file:
                file.write(f"{is_spread(session.config)}\\n")
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    assert pytester.runpytest_subprocess(*arguments).ret == 0
    assert (pytester.path / "told").read_text().splitlines() == [str(spread)] * processes
