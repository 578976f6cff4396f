"""The ROC of limits, on made-up reports."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import separation
from harness.records import Limits, Record, Status

LIMIT = ("D2", "directions")
BANDS = Limits(pass_band=(2, math.inf), warn_band=(1.5, math.inf), source="made up", calibrated=True)


def report(model, *values, status=Status.PASS, metric=LIMIT[1], info=False):
    records = [
        Record(
            check=LIMIT[0], metric=metric, status=status, value=value, threshold=BANDS, direction="higher", info=info
        )
        for value in values
    ]
    return SimpleNamespace(model=model, records=records)


def test_the_area_is_that_under_the_curve():
    generator = np.random.default_rng(0)
    healthy, broken = generator.normal(1, 1, 40), generator.normal(0, 1, 30)
    # the curve itself: every place where the limit could stand, from the strictest to the most lenient
    places = np.sort(np.concatenate((healthy, broken, [-math.inf, math.inf])))
    condemned, caught = ([np.mean(scores < place) for place in places] for scores in (healthy, broken))
    found = separation.Separation(*([separation.Score("x", s, s, False) for s in part] for part in (healthy, broken)))
    assert found.auc.value == pytest.approx(np.trapezoid(caught, condemned))
    assert found.auc.low < found.auc.value < found.auc.high
    assert separation.Separation(found.healthy).auc is None


def test_a_limit_between_healthy_and_broken_separates_them():
    found = separation.separations([
        report("GF-MH", 5.0, 2.4), report("RWKV6", 3.0),
        report("mutant:rank_one_state", 4.0, 1.0, status=Status.FAIL),
    ])  # fmt: skip
    limit = found[LIMIT]
    # the worst value of each report counts
    assert [(s.subject, s.value) for s in (*limit.healthy, *limit.broken)] == [
        ("GF-MH", 2.4), ("RWKV6", 3.0), ("rank_one_state", 1.0),
    ]  # fmt: skip
    assert (limit.auc.value, limit.told, limit.verdict) == (1.0, ["rank_one_state"], "FAILs 1 of 1")
    assert separation.untold(found) == []


def test_a_limit_that_cannot_tell_is_said_to_tell_nothing():
    found = separation.separations([
        report("GF-MH", 1.2, status=Status.FAIL), report("RWKV6", 3.0), report("mutant:rank_one_state", 2.5),
    ])  # fmt: skip
    assert (found[LIMIT].auc.value, found[LIMIT].told, found[LIMIT].verdict) == (0.5, [], "FAILs GF-MH")
    assert separation.untold(found) == ["rank_one_state"]
    assert "Told by no limit of their check: rank_one_state." in separation.page(found)


def test_another_checks_mutant_is_neither_and_info_is_no_limit():
    found = separation.separations([report("mutant:acausal", 1.0), report("GF-MH", 1.0, info=True)])
    assert found.get(LIMIT, separation.Separation()).broken == []
    assert found.get(LIMIT, separation.Separation()).healthy == []


def test_a_number_that_is_none_is_the_worst():
    found = separation.separations([report("GF-MH", 3.0), report("mutant:rank_one_state", math.nan, 9.0)])
    assert found[LIMIT].told == ["rank_one_state"]


def test_the_program_reads_a_folder_and_says_what_escaped(tmp_path, monkeypatch, capsys):
    reports = {"a": report("GF-MH", 3.0), "b": report("mutant:rank_one_state", 1.0, status=Status.FAIL)}
    for name in reports:
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").touch()
    monkeypatch.setattr(separation, "read_report", lambda directory: reports[directory.name])
    assert separation.main([str(tmp_path)]) == 0
    assert "| `D2.directions` | 1.00 [" in capsys.readouterr().out
    reports["b"] = report("mutant:rank_one_state", 3.5)
    assert separation.main([str(tmp_path), "--out", str(tmp_path / "page.md")]) == 1
    assert "rank_one_state" in (tmp_path / "page.md").read_text()
    reports["b"] = report("mutant:of_yesterday", 3.5)
    assert separation.main([str(tmp_path)]) == 2
    assert "mutant:of_yesterday: no longer exists" in capsys.readouterr().err
    assert separation.main([str(tmp_path / "a" / "nothing")]) == 2
