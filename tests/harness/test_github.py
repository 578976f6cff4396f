"""What GitHub Actions is told of a run."""

import pytest
from graduation_evidence import made
from graduation_report import facts, written_tables

from harness.github import LEVELS, MOST_ANNOTATIONS, annotations, command, line_of, shortened, summarise, tell
from harness.records import Status
from harness.render import write_report

THERE = {"GITHUB_ACTIONS": "true"}


@pytest.fixture
def tables(tmp_path):
    return written_tables(tmp_path)


def report_of(evidence, tables, tmp_path):
    return write_report(facts(evidence), tables, tmp_path / "out")


def test_a_command_escapes_what_would_end_it():
    given = command("error", "50% of a:b, c\r\nd", title="x: y, 1%", file="a,b.py", line="3")
    assert given == "::error file=a%2Cb.py,line=3,title=x%3A y%2C 1%25::50%25 of a:b, c%0D%0Ad"
    assert command("warning", "m", title="t") == "::warning title=t::m"


def test_what_went_wrong_is_told_worst_first_with_its_line(tables, tmp_path):
    suite = tmp_path / "suites" / "graduation"
    suite.mkdir(parents=True)
    (suite / "test_g1.py").write_text(
        "import pytest\n\n\ndef test_other():\n    pass\n\n\ndef test(judge):\n    pass\n"
    )
    evidence = made(canary=None, statuses={"G1": Status.FAIL, "D1": Status.WARN})
    told = annotations(report_of(evidence, tables, tmp_path), tables, tmp_path)
    assert [text.split("title=")[1].split("%3A")[0] for text in told] == ["G1 FAIL", "CANARY MISSING", "D1 WARN"]
    assert told[0].startswith("::error file=suites/graduation/test_g1.py,line=8,title=G1 FAIL%3A G1::level_of 0.1")
    assert "next: n%0Aagain: pytest again/G1" in told[0]
    assert told[1].startswith("::error file=suites/graduation/test_canary.py,title=")
    assert told[2].startswith("::warning ")
    assert all("\n" not in text for text in told)


def test_what_the_audit_refused_is_told_with_its_reason(tables, tmp_path):
    [told] = annotations(report_of(made(unsealed=frozenset({"G1"})), tables, tmp_path), tables, tmp_path)
    assert "title=G1 MISSING" in told
    assert "never reported" in told


def test_a_pass_is_not_told(tables, tmp_path):
    assert annotations(report_of(made(), tables, tmp_path), tables, tmp_path) == []
    assert Status.PASS not in LEVELS


def test_of_many_the_last_names_those_left_out(tables, tmp_path):
    names = ["G0", "G1", "G3", "S3", "D1", "STABILITY", "RESUME", "CANARY", "SCALING", "NOTE", "HYBRID"]
    evidence = made(statuses=dict.fromkeys(names, Status.FAIL) | {"RESOURCE": Status.WARN})
    told = annotations(report_of(evidence, tables, tmp_path), tables, tmp_path)
    assert len(told) == MOST_ANNOTATIONS
    assert "and 3 checks more" in told[-1]
    assert told[-1].endswith("RESOURCE WARN")


@pytest.mark.parametrize(
    ("nodeid", "line"),
    [
        ("a.py::test_one", 1),
        ("a.py::Suite::test_two[x::y]", 4),
        ("a.py::test_absent", None),
        ("gone.py::test_one", None),
        ("a.py", None),
        ("", None),
    ],
)
def test_the_line_of_a_test(nodeid, line, tmp_path):
    (tmp_path / "a.py").write_text(
        "def test_one():\n    pass\nclass Suite:\n    async def test_two(self):\n        pass\n"
    )
    assert line_of(nodeid, tmp_path) == line


def test_a_summary_is_cut_after_a_whole_line_and_says_so():
    text = "ä line\n" * 1000
    assert shortened(text, 100_000) == text
    cut = shortened(text, 500)
    assert len(cut.encode()) <= 500
    assert cut.startswith("ä line\nä line\n")
    assert cut.endswith("decision.md.\n")
    assert set(cut.partition("\n\nCut")[0].splitlines()) == {"ä line"}
    assert shortened(text, 10) == ""


def test_the_summary_is_appended_to_and_only_there(tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    where = {**THERE, "GITHUB_STEP_SUMMARY": str(summary)}
    assert summarise(where, "# a\n![plot](plots/a.png)\nb ![not a figure](x)\n") == ""
    assert summary.read_text() == "before\n# a\nb ![not a figure](x)\n"
    assert summarise({"GITHUB_STEP_SUMMARY": str(summary)}, "c") == ""
    assert summarise(THERE, "c") == ""
    assert "c" not in summary.read_text().splitlines()
    assert summarise({**where, "GITHUB_STEP_SUMMARY": str(tmp_path)}, "c").startswith("::warning title=groundthink::")


def test_a_summary_never_grows_beyond_what_is_kept(tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("x" * 800_000)
    summarise({**THERE, "GITHUB_STEP_SUMMARY": str(summary)}, "line\n" * 100_000)
    assert 800_000 < summary.stat().st_size <= 900_000


def test_outside_of_github_nothing_is_told_and_there_everything(tables, tmp_path):
    report = report_of(made(statuses={"G1": Status.FAIL}), tables, tmp_path)
    given = (report, tables, tmp_path / "out", tmp_path)
    summary = tmp_path / "summary.md"
    assert tell({"GITHUB_STEP_SUMMARY": str(summary)}, *given) == []
    assert not summary.exists()
    assert len(tell({**THERE, "GITHUB_STEP_SUMMARY": str(summary)}, *given)) == 1
    assert summary.read_text().startswith(f"# {report.headline}\n")
