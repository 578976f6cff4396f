"""What a check found is what pytest, the exit code, JUnit and the report say, in one process and under xdist."""

import xml.etree.ElementTree as ET

import pytest
from plugin_project import ROOT, Project, check_row

from harness.plugin.lifecycle import GPU_PEAK

EVERY_STATUS = """
@check("A1")
def test_pass(judge):
    judge("ratio", 1.0)

@check("A1")
def test_warn(judge):
    judge("ratio", 5.0)

@check("A1")
def test_fail(judge):
    judge("ratio", 0.05, ci=(0.03, 0.08), layer=3)

@check("A1")
def test_invalid(judge):
    judge.invalid("the probe saw nothing")

@check("A1")
def test_missing(judge):
    judge.missing("the model has no hook for gates")

@check("A1")
def test_silent(judge):
    judge.info("ratio", 1.0)

@check("A1")
def test_unsupported(judge):
    judge.unsupported("needs a GPU")

@check("A1")
def test_na(judge):
    judge.na("has one branch")

@check("A1")
def test_skip(judge):
    pytest.skip("not today")

@check("A1")
def test_model_raises(judge):
    raise RuntimeError("shapes do not match")

@check("A1")
def test_no_limits(judge):
    judge("ration", 1.0)

@pytest.fixture
def broken():
    raise RuntimeError("fixture broke")

@check("A1")
def test_fixture_raises(broken, judge):
    judge("ratio", 1.0)

@pytest.fixture
def leaking():
    yield
    raise RuntimeError("teardown broke")

@check("A1")
def test_teardown_raises(leaking, judge):
    judge("ratio", 1.0)
"""

EXPECTED = {
    "test_pass": ("PASS", None),
    "test_warn": ("WARN", None),
    "test_fail": ("FAIL", "failure"),
    "test_invalid": ("INVALID", "error"),
    "test_missing": ("MISSING", "error"),
    "test_silent": ("MISSING", "error"),
    "test_unsupported": ("UNSUPPORTED", "skipped"),
    "test_na": ("NA", "skipped"),
    "test_skip": ("MISSING", "error"),
    "test_model_raises": ("FAIL", "failure"),
    "test_no_limits": ("INVALID", "error"),
    "test_fixture_raises": ("INVALID", "error"),
    "test_teardown_raises": ("INVALID", "error"),
}


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Project(pytester)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_status_reads_the_same_everywhere(project, workers):
    project.suite(test_a1=EVERY_STATUS)
    result = project.run("-n", workers)
    assert result.ret == 1

    records = [record for record in project.report.records if not record.info]
    found = {record.nodeid.rpartition("::")[2]: record.status.value for record in sorted(records, key=worst_last)}
    assert found == {name: status for name, (status, _) in EXPECTED.items()}
    assert len(records) == len(EXPECTED) + 1, "one record an item; the one whose teardown raises has its PASS as well"
    assert project.statuses == {"A1": "FAIL"}

    cases = ET.parse(project.report_dir / "junit.xml").getroot().iter("testcase")
    # pytest writes a teardown error as a second case of the same name
    outcomes = {}
    for case in cases:
        children = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes.setdefault(case.get("name"), []).extend(children)
    assert outcomes == {name: [outcome] if outcome else [] for name, (_, outcome) in EXPECTED.items()}
    result.assert_outcomes(passed=2, failed=2, errors=7, skipped=2)
    result.stdout.fnmatch_lines(["*1 warned*"])


# a GPU whose peak is what was allocated since it was last asked to forget
ON_A_GPU = """
import pytest
import torch

allocated = [7]
torch.cuda.is_initialized = lambda: True
torch.cuda.reset_peak_memory_stats = allocated.clear
torch.cuda.max_memory_allocated = lambda: max(allocated, default=0)

@pytest.mark.check("A1")
@pytest.mark.parametrize("size", [3, 2])
def test_takes_memory(judge, size):
    allocated.append(size)
    judge("ratio", 1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_item_tells_its_own_peak_of_gpu_memory(project, workers):
    project.suite(test_a1=ON_A_GPU)
    project.run("-n", workers)
    cases = ET.parse(project.report_dir / "junit.xml").getroot().iter("testcase")
    peaks = {case.get("name"): [p.get("value") for p in case.iter("property") if p.get("name") == GPU_PEAK]
             for case in cases}  # fmt: skip
    assert peaks == {"test_takes_memory[3]": ["3"], "test_takes_memory[2]": ["2"]}


def worst_last(record):
    return record.status != "PASS"


@pytest.mark.slow
def test_a_failure_is_a_message_and_no_traceback(project):
    project.suite(test_a1=EVERY_STATUS)
    result = project.run("-k", "test_fail or test_model_raises")
    result.stdout.fnmatch_lines(
        [
            "A1 FAIL: title of A1",
            "  measured   ratio[[]layer 3, seed 0] = 0.05 [[]0.03, 0.08]",
            "  allowed    pass 0.3 .. 3, warn 0.1 .. 10   (thresholds.toml [[]A1.ratio], a source; uncalibrated)",
            "  run        GF-MH 3.5M | seed 0 | cpu",
            "  next       what to do about A1",
            "A1 FAIL: title of A1",
            "  because    call: RuntimeError: shapes do not match",
            "*raise RuntimeError*",
        ]
    )
    assert "NonVerdictError" not in result.stdout.str()
    assert 'judge("ratio", 0.05' not in result.stdout.str()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selected", "exit_code", "outcome"),
    [
        ("test_pass", 0, "PASS"),
        ("test_warn or test_pass", 0, "WARN"),
        ("test_unsupported or test_na", 0, "NOT JUDGED"),
        ("test_invalid or test_pass", 11, "INCOMPLETE"),
        ("test_invalid or test_fail", 1, "FAIL"),
        ("nothing_of_that_name", 5, None),
    ],
)
def test_exit_codes(project, selected, exit_code, outcome):
    project.suite(test_a1=EVERY_STATUS)
    assert project.run("-k", selected).ret == exit_code
    if outcome is not None:
        assert (project.report.outcome, project.report.exit_code) == (outcome, exit_code)


@pytest.mark.slow
def test_fail_on_warn_makes_a_warning_a_failure(project):
    project.suite(test_a1=EVERY_STATUS)
    result = project.run("-k", "test_warn", "--fail-on-warn")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    assert project.statuses == {"A1": "WARN"}
    assert project.report.outcome == "FAIL"


NO_MEASUREMENTS = {
    "judge('ratio', np.ones(2))": "TypeError",
    "judge('ratio', '1.0')": "TypeError",
    "judge('ratio', None)": "TypeError",
    "judge('ratio', True)": "TypeError",
    "judge.holds('claim', 1.0)": "TypeError",
    "judge('ratio', 1.0, ci=(2.0, 1.0))": "ends swapped",
    "judge('ratio', float('nan'))": "",
}


@pytest.mark.slow
def test_what_is_no_measurement_never_passes(project):
    tests = [
        f"@check('A1')\ndef test_{index}(judge):\n    {expression}\n"
        for index, expression in enumerate(NO_MEASUREMENTS)
    ]
    project.suite(test_a1="import numpy as np\n" + "".join(tests))
    project.run().assert_outcomes(failed=len(NO_MEASUREMENTS))
    notes = [record.note for record in project.report.records]
    assert all(wanted in note for note, wanted in zip(notes, NO_MEASUREMENTS.values(), strict=True))
    assert project.json["records"][-1]["value"] == "nan"


@pytest.mark.slow
def test_records_carry_plain_numbers_whatever_was_measured(project):
    body = """
import numpy as np
@check("A1")
def test_it(judge):
    judge.provenance(step=7, config_sha256="c0", dtype="fp32")
    judge("ratio", np.float32(1.5), ci=np.array([1.0, 2.0]), n=np.int64(3), branch="rwkv", seed=4)
    judge.holds("claim", np.bool_(True), value=np.float64(2), step=9)
"""
    project.suite(test_a1=body)
    assert project.run("-n", "1").ret == 0
    first, second = project.report.records
    assert (first.value, first.ci, first.n, first.seeds, first.step) == (1.5, (1.0, 2.0), 3, (4,), 7)
    assert (first.config_sha256, first.dtype, first.model, first.scale, first.device) == (
        "c0",
        "fp32",
        "GF-MH",
        "3.5M",
        "cpu",
    )
    assert (second.status, second.value, second.step, second.seeds) == ("PASS", 2.0, 9, (0,))
    assert first.wall_s >= 0


@pytest.mark.slow
def test_a_bare_not_applicable_is_decided_by_the_table(project):
    project.suite(test_h1="@check('H1')\ndef test_it(judge):\n    judge.holds('ran', True)\n")
    assert project.run("--model", "RWKV6").ret == 0
    assert project.statuses == {"H1": "NA"}
    assert "RWKV6 has rwkv" in project.report.records[0].note
    assert project.run("--model", "HY").ret == 0
    assert project.statuses == {"H1": "PASS"}


@pytest.mark.slow
def test_failed_known_answers_make_the_check_invalid(project):
    (project.pytester.path / "kats.py").write_text(
        "from harness.known_answers import known_answer\n"
        "@known_answer('A1')\ndef test_two():\n    assert 1 + 1 == 3, 'got 2'\n"
        "@known_answer('B1')\ndef breaks():\n    raise ZeroDivisionError('oops')\n"
        "@known_answer('H1')\ndef holds():\n    pass\n"
    )
    rows = [check_row(name, known_answers=["kats"]) for name in ("A1", "B1", "H1")]
    project.checks(*rows, check_row("N1", known_answers=["kats"]))
    project.suite(
        test_all="".join(
            f"@check('{name}')\ndef test_{name}(judge):\n    judge.holds('ran', True)\n"
            for name in ("A1", "B1", "H1", "N1")
        )
    )
    result = project.run("-p", "kats")
    assert result.ret == 11
    assert project.statuses == {"A1": "INVALID", "B1": "INVALID", "N1": "INVALID", "H1": "PASS"}
    notes = {record.check: record.note for record in project.report.records}
    assert "kats.test_two: got 2" in notes["A1"]
    assert "ZeroDivisionError: oops" in notes["B1"]
    assert "registers no known-answer test" in notes["N1"]
    assert {record.check: record.kat for record in project.report.records}["H1"] == "ok (1)"
