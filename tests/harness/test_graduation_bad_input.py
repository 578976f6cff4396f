"""What a decision refuses before it is made: tables that cannot be meant, waivers that are not in force, bad usage."""

import tomllib
from datetime import date

import pytest
from plugin_project import LIMITS, ROOT, Project, check_row, write_tables

from harness.errors import HarnessError
from harness.graduation.waivers import load_waivers
from harness.tables import TablePaths, load_tables

ROWS = check_row("A1", category="stability"), check_row("B1", needs=["A1"])

# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_made_up_tables_are_good(tmp_path):
    tables = write_tables(tmp_path, *ROWS, limits=LIMITS, gate="A1")
    assert tables.evidence.scale("8M").demands == ("A1", "B1")
    assert tables.evidence.scale("30M").demands == ("P1",)


EVIDENCE_FAULTS = {
    "unknown check": ('["A1", "B1"]', '["A1", "B2"]', r"demands 'B2', which is no check; did you mean B1"),
    "other case": ('["A1", "B1"]', '["A1", "b1"]', r"demands 'b1', which is no check; did you mean B1"),
    "twice": ('["A1", "B1"]', '["A1", "A1", "B1"]', r"demands a check twice"),
    "prerequisite left out": ('["A1", "B1"]', '["B1"]', r"demands B1 and not A1, which it needs"),
    "nothing": ('["A1", "B1"]', "[]", r"demands\] Tuple should have at least 1 item"),
    "a check where it does not run": ('["P1"]', '["A1"]', r"demands A1, which does not run at 30M"),
    "scale left out": ('[scales."125M"]', '[scales."250M"]', r"\[scales\.250M\.\[key\]\] Input should be"),
    "rungs left out": ("canary = [", "canaries = [", r"\[rungs\.canaries\.\[key\]\] Input should be"),
    "pending and built": ("[pending]\n", '[pending]\nA1 = { category = "none", title = "t" }\n', "is a check by now"),
    "rung of an unknown check": ('check = "A1", status', 'check = "A2", status', r"\[rungs\.stability\] names 'A2'"),
    "rung of an unknown metric": (
        'status = "PASS"',
        'metric = "rate", at_least = 1',
        r"names A1\.rate, which has no li",
    ),
    "status and metric": ('status = "PASS"', 'status = "PASS", metric = "ratio"', "give either status, or metric"),
    "two bounds": ('status = "PASS"', 'metric = "ratio", at_least = 1, below = 2', "takes exactly one of"),
    "no bound": ('status = "PASS"', 'metric = "ratio"', "takes exactly one of"),
    "gate of an unknown check": ('checks = ["A1"]', 'checks = ["A2"]', r"\[gates\] H6 names 'A2'"),
    "weights left out": ("canary = 1.5, ", "", "weights are those of"),
    "totals that do not rise": ("go = 10.0", "go = 7.0", "must rise and be reachable"),
    "a total out of reach": ("go = 10.0", "go = 16.0", "must rise and be reachable"),
    "no seed": ("seeds = 3", "seeds = 0", "greater than or equal to 1"),
    "unknown field": ("cpu_ref = true", "cpu_ref = true\nwaive = true", "Extra inputs are not permitted"),
    "no TOML": ("[pending]", "[pending", "not TOML"),
}


@pytest.mark.parametrize(("old", "new", "why"), EVIDENCE_FAULTS.values(), ids=EVIDENCE_FAULTS)
def test_a_table_of_evidence_that_cannot_be_meant_is_refused(tmp_path, old, new, why):
    write_tables(tmp_path, *ROWS, limits=LIMITS, gate="A1")
    path = tmp_path / "evidence.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(HarnessError, match=why) as error:
        load_tables(TablePaths.beside(tmp_path))
    assert str(path) in str(error.value)


def test_a_missing_rung_is_refused(tmp_path):
    write_tables(tmp_path, *ROWS, limits=LIMITS)
    path = tmp_path / "evidence.toml"
    rungs = tomllib.loads(path.read_text())["rungs"]["canary"]
    assert len(rungs) == 3
    line = next(line for line in path.read_text().splitlines() if line.startswith("canary = ["))
    one = '[{ says = "s", requires = [{ check = "P1", status = "WARN" }] }]'
    path.write_text(path.read_text().replace(line, f"canary = {one}"))
    with pytest.raises(HarnessError, match=r"\[rungs\] lacks canary"):
        load_tables(TablePaths.beside(tmp_path))


def test_a_study_is_never_demanded(tmp_path):
    write_tables(tmp_path, check_row("A1"))
    (tmp_path / "checks.toml").write_text(check_row("A1", study="true"))
    with pytest.raises(HarnessError, match=r"demands A1, which is a study"):
        load_tables(TablePaths.beside(tmp_path))


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (LIMITS.replace("[0.3, 3.0]", "[0.05, 3.0]"), r"\[A1\.ratio\] pass \[0\.05, 3\.0\] lies outside warn"),
        (LIMITS.replace("[0.3, 3.0]", "[3.0, 0.3]"), r"is no interval"),
        (LIMITS.replace("[0.5, inf]", "[0.5, 9.0]"), r"lies outside warn"),
        (LIMITS.replace("[0.5, inf]", "[nan, inf]"), r"is no interval"),
        (LIMITS.replace("[0.5, inf]", "[2.0, inf]"), r"lies outside warn"),
        (LIMITS.replace("[A1.", "[A2."), r"\[A2\] is no check; did you mean A1"),
        (LIMITS.replace("[A1.", "[a1."), r"\[a1\] is no check; did you mean A1"),
        (LIMITS.replace("pass = [0.3", "passes = [0.3"), "Field required"),
        (
            LIMITS + '[B1.ratio.per_scale."9M"]\npass = [1.0, inf]\nwarn = [0.5, inf]\n',
            r"\[B1\.ratio\.per_scale\] '9M' is no scale",
        ),
    ],
)
def test_a_table_of_limits_that_cannot_be_meant_is_refused(tmp_path, limits, why):
    with pytest.raises(HarnessError, match=why) as error:
        write_tables(tmp_path, *ROWS, limits=limits)
    assert "thresholds.toml" in str(error.value)


# --- waivers ----------------------------------------------------------------------------------------------------------

TODAY = date(2026, 3, 1)
WAIVER = """
[[waivers]]
check = "A1"
owner = "Ada Lovelace"
reason = "repeated by hand on 2,000 documents"
expires = 2026-03-01
"""


@pytest.fixture
def waivers(tmp_path):
    table = write_tables(tmp_path, *ROWS, limits=LIMITS).evidence

    def load(text, scale="3.5M"):
        path = tmp_path / "waivers.toml"
        if text is not None:
            path.write_text(text)
        return load_waivers(path, table, scale, TODAY)

    return load


def test_a_waiver_holds_until_the_end_of_its_last_day(waivers):
    (waiver,) = waivers(WAIVER)
    assert (waiver.check, waiver.expires) == ("A1", TODAY)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (WAIVER.replace("2026-03-01", "2026-02-28"), "the waiver of A1 by Ada Lovelace expired on 2026-02-28; renew"),
        (WAIVER.replace('"A1"', '"P1"'), "3.5M demands no check 'P1'"),
        (WAIVER.replace('"A1"', '"a1"'), "demands no check 'a1'; did you mean A1"),
        (WAIVER + WAIVER, "A1 is waived twice; leave one"),
        (WAIVER.replace('reason = "repeated by hand on 2,000 documents"\n', ""), r"reason\] Field required"),
        (WAIVER.replace("repeated by hand on 2,000 documents", "fine"), "at least 10 characters"),
        (WAIVER.replace("repeated by hand on 2,000 documents", " " * 20), "should match pattern"),
        (WAIVER.replace("Ada Lovelace", ""), "owner"),
        (WAIVER.replace("expires = 2026-03-01\n", ""), r"expires\] Field required"),
        (WAIVER.replace("2026-03-01", '"one day"'), "expires"),
        (WAIVER + "grade = 3\n", "Extra inputs are not permitted"),
        ("", r"\[waivers\] Field required"),
        ("[[waivers]", "not TOML"),
        (None, "No such file"),
    ],
)
def test_a_waiver_that_is_not_in_force_is_refused(waivers, text, why):
    with pytest.raises(HarnessError, match=why) as error:
        waivers(text)
    assert "--waivers" in str(error.value)


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    project = Project(pytester)
    categories = {"A1": "stability", "B1": "canary", "C1": "scaling", "D1": "resource"}
    project.checks(*(check_row(check, category=category) for check, category in categories.items()))
    body = "@check('{}')\ndef test_it(judge):\n    judge.holds('ran', {} not in os.environ.get('BROKEN', ''))\n"
    project.suite(**{f"test_{check.lower()}": body.format(check, f"'{check}'") for check in categories})
    return project


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--graduate", "3.5M", "suites"], "chooses its own suites, and suites would leave evidence out"),
        (["--graduate", "3.5M", "-m", "tiny"], "and -m tiny would leave evidence out"),
        (["--graduate", "3.5M", "-k", "a1"], "and -k a1 would leave evidence out"),
        (["--graduate", "3.5M", "--seeds", "1"], "--graduate 3.5M demands 3 seeds; leave --seeds out"),
        (["--graduate", "3.5m"], "no such scale; did you mean 3.5M"),
        (["--graduate", "GF-MH"], "no such scale"),
        (["--graduate", "tiny"], "no such scale"),
        (["--dry-run"], "--dry-run belongs to --graduate SCALE"),
        (["--waivers", "w.toml"], "--waivers belongs to --graduate SCALE"),
        (["--graduate", "3.5M", "--waivers", "gone.toml"], "--waivers gone.toml: No such file"),
    ],
)
def test_what_would_leave_evidence_out_is_refused(project, arguments, why):
    with pytest.raises(pytest.UsageError) as error:
        project.pytester.parseconfigure(*arguments, "--device", "cpu")
    assert why in str(error.value)


@pytest.mark.slow
def test_good_evidence_is_go_and_a_preset_that_was_changed_is_not(project):
    assert project.graduate("3.5M").ret == 0
    assert (project.report.verdict, project.report.seeds) == ("GO", [0, 1, 2])
    assert project.graduate("3.5M", "--set", "train.lr=0.1").ret == 0, "how it is trained is the model's affair"
    assert project.graduate("3.5M", "--set", "train.steps=5").ret == 11
    assert project.report.verdict == "INCOMPLETE"
    assert project.report.reasons == ["INCOMPLETE: the preset was changed where the evidence must not: train.steps"]
    assert "the preset was changed: train.steps=5" in project.report.stamps


@pytest.mark.slow
def test_a_waived_failure_is_caution_and_says_who_answers_for_it(project, monkeypatch):
    monkeypatch.setenv("BROKEN", "A1")
    assert project.graduate("3.5M").ret == 1
    assert project.report.verdict == "HOLD"
    (project.pytester.path / "waivers.toml").write_text(WAIVER.replace("2026-03-01", "2999-01-01"))
    assert project.graduate("3.5M", "--waivers", "waivers.toml").ret == 10
    assert project.report.verdict == "CAUTION"
    assert any("waived by Ada Lovelace until 2999-01-01" in reason for reason in project.report.reasons)


@pytest.mark.slow
def test_items_reach_the_report_from_every_worker_and_once(project):
    project.suite(
        test_a1="@check('A1')\n@pytest.mark.parametrize('seed', range(4))\ndef test_it(judge, publish_items, seed):\n"
        "    judge.provenance(corpus_sha256='c', tokenizer_sha256='t')\n"
        "    publish_items('loss', {'0': (1.5, 2)}, seed=seed, unit='nat', direction='lower')\n"
        "    judge.holds('ran', True)\n",
        test_b1="@check('A1')\ndef test_again(judge, publish_items):\n"
        "    publish_items('loss', {'0': (1.5, 2)}, seed=9, unit='nat', direction='lower')\n"
        "    judge.holds('ran', True)\n@check('A1')\ndef test_once_more(judge, publish_items):\n"
        "    publish_items('loss', {'0': (1.5, 2)}, seed=9, unit='nat', direction='lower')\n",
    )
    project.run("-n", "2")
    from harness.items import read_items

    found = read_items(project.report_dir, project.report.items_sha256)
    assert sorted(each.seed for each in found) == [0, 1, 2, 3, 9]
    assert {(each.check, each.metric, each.corpus_sha256) for each in found if each.seed < 9} == {("A1", "loss", "c")}
    assert found[0].items == {"0": (1.5, 2.0)}
    assert any("A1.loss of seed 9 is published by item in" in record.note for record in project.report.records)
