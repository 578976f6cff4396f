"""The table of checks: what it refuses, how it is searched, and the order prerequisites put it in."""

import pytest
from plugin_project import check_row

from harness.checks import CheckError, load_checks
from harness.errors import did_you_mean


def write(tmp_path, *rows):
    path = tmp_path / "checks.toml"
    path.write_text("".join(rows))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (check_row("A1", scales=["9M"]), r"\[A1.scales"),
        (check_row("A1", scales=[]), r"\[A1.scales"),
        (check_row("A1") + "claims = 'x'\n", "Extra inputs"),
        (check_row("A1", branches="two"), r"\[A1.branches"),
        (check_row("A1", file="../x"), r"\[A1.file"),
        (check_row("A1", needs=["A2"]), "needs 'A2', which is no check"),
        (check_row("A1", needs=["B1"]) + check_row("B1", needs=["A1"]), "in a circle"),
        ("[A1", "not TOML"),
        (check_row("A1") + "seeds = 'some'\n", r"\[A1.seeds"),
        (check_row("A1") + "seeds = 'first'\n", r"name both in trainings, which is \[\]"),
        (check_row("A1") + "seeds = 'first'\ntrainings = ['main']\n", r"which is \['main'\]"),
        (check_row("A1") + "seeds = 'first'\ntrainings = ['extended', 'peer']\n", "which is .'extended', 'peer'."),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, row, message):
    with pytest.raises(CheckError, match=message):
        load_checks(write(tmp_path, row))


def test_only_a_check_whose_other_training_one_seed_has_is_spared_the_others():
    assert [check.id for check in load_checks().values() if check.seeds == "first"] == ["EXTENDED"]


def test_ids_are_found_in_any_case_and_near_matches_are_named():
    checks = load_checks()
    assert checks.find("stop").id == "STOP"
    assert checks.find("g3.5").id == "G3.5"
    with pytest.raises(CheckError, match="did you mean G3"):
        checks.find("G33")


def test_prerequisites_come_first(tmp_path):
    rows = [check_row("C", needs=["B"]), check_row("B", needs=["A"]), check_row("A"), check_row("D")]
    checks = load_checks(write(tmp_path, *rows))
    assert checks.depths({}) == {"A": 0, "B": 1, "C": 2, "D": 0}
    assert checks.depths({"A": {"D"}}) == {"D": 0, "A": 1, "B": 2, "C": 3}
    with pytest.raises(CheckError, match="in a circle"):
        checks.depths({"A": {"C"}})


def test_nothing_like_it_is_said_plainly():
    assert did_you_mean("zzz", ["G1"]) == "Known: G1"
    assert did_you_mean("zzz", []) == "Known: none"
