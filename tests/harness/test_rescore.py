"""A saved report judged again: what was touched up afterwards is caught, even where the hash was made again."""

import json
from datetime import date

import pytest
from made_up_report import TABLE, claim, facts, measured
from plugin_project import check_row, write_tables

from harness.graduation.waivers import Waiver
from harness.items import ItemSet
from harness.records import Status
from harness.render import write_report
from harness.report import Report
from harness.rescore import main, rescore

ITEMS = ItemSet(check="A1", metric="m", seed=0, unit="1", direction="", corpus_sha256="", tokenizer_sha256="",
                items={"0": (1.0, 2.0)})  # fmt: skip


def write(tmp_path, *records, **changes):
    rows = check_row("A1", category="stability"), check_row("B1")
    tables = write_tables(tmp_path, *rows, limits=TABLE, gate="A1")
    provenance = {**facts().provenance, **tables.hashes, "date": "2026-03-01T12:00:00+00:00"}
    write_report(facts(*records, provenance=provenance, items=[ITEMS], **changes), tables, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def saved(tmp_path):
    """A suite report on disk whose every status follows."""
    layers = measured(1.0), measured(5.0, (2.0, 6.0), layer=1), measured(float("nan"), layer=2)
    return write(tmp_path, *layers, claim(Status.PASS))


@pytest.fixture
def graduation(tmp_path):
    """A decision on disk that follows: A1 FAILs and is a hard gate."""
    return write(tmp_path, measured(0.01), claim(Status.PASS), graduates=True)


def edit(directory, change, sign=True):
    """Change report.json, and unless ``sign`` is False give it the hash of its new content."""
    path = directory / "report.json"
    content = json.loads(path.read_text())
    change(content)
    if sign:
        content["content_sha256"] = Report.model_validate(content).digest()
    path.write_text(json.dumps(content))


def test_a_saved_report_follows_from_its_numbers(saved, capsys):
    assert rescore(saved) == []
    assert main([str(saved)]) == 0
    assert "FAIL: GF-MH at 3.5M" in capsys.readouterr().out


def test_a_decision_follows_from_its_numbers(graduation, capsys):
    assert rescore(graduation) == []
    assert main([str(graduation)]) == 0
    assert "NO-GO" in capsys.readouterr().out


TOUCHED_UP = {
    "status": (lambda c: c["records"][1].update(status="PASS"), "recorded PASS, follows WARN"),
    "value": (lambda c: c["records"][0].update(value=50.0), "recorded PASS, follows FAIL"),
    "interval": (lambda c: c["records"][0].update(ci=[0.0, 50.0]), "recorded PASS, follows WARN"),
    "interval swapped": (lambda c: c["records"][0].update(ci=[2.0, 1.0]), "its interval has its ends swapped"),
    "NaN that passes": (lambda c: c["records"][2].update(status="PASS"), "recorded PASS, follows FAIL"),
    "NaN put in": (lambda c: c["records"][0].update(value="nan"), "recorded PASS, follows FAIL"),
    "no number": (lambda c: c["records"][0].update(value=None), "is judged PASS without a number"),
    "limits left out": (lambda c: c["records"][2].update(threshold=None), "records none"),
    "other limits": (lambda c: c["records"][0]["threshold"].update(pass_band=[0.0, 9.0]), "judged by other limits"),
    "record made info": (lambda c: c["records"][2].update(info=True), "(their hash differs)"),
    "claim": (lambda c: c["records"][3].update(note="all is well"), "(their hash differs)"),
    "check": (lambda c: c["checks"][0].update(status="PASS"), "A1: recorded PASS, its records give FAIL"),
    "check left out": (lambda c: c["checks"].pop(0), "is not listed among the checks"),
    "record dropped": (lambda c: c["records"].pop(2), "a reported 3 records, 2 are here"),
    "record twice": (lambda c: c["records"].append(c["records"][0]), "two records of A1 ratio[seed 0] (a)"),
    "record of no item": (lambda c: c["records"][0].update(nodeid="x"), "x was not planned"),
    "record of another model": (lambda c: c["records"][0].update(model="HY"), "(their hash differs)"),
    "record of another scale": (lambda c: c["records"][0].update(scale="8M"), "(their hash differs)"),
    "seal": (lambda c: c["seals"][0].update(sha256="0" * 64), "(their hash differs)"),
    "seal of fewer": (lambda c: c["seals"][0].update(records=2), "a reported 2 records, 3 are here"),
    "outcome": (lambda c: c.update(outcome="PASS"), "recorded PASS (exit 1), its checks give FAIL (exit 1)"),
    "exit code": (lambda c: c.update(exit_code=0), "(exit 0)"),
    "hash of a table": (lambda c: c["provenance"].update(checks_sha256="0"), "checks.toml is not the file"),
    "hash of the items": (lambda c: c.update(items_sha256="0"), "items.jsonl is not the file whose hash"),
}


@pytest.mark.parametrize(("change", "fault"), TOUCHED_UP.values(), ids=TOUCHED_UP)
def test_a_report_that_was_touched_up_is_caught_though_its_hash_fits(saved, change, fault):
    edit(saved, change)
    found = rescore(saved)
    assert any(fault in each for each in found), found
    assert not any("changed after it was written" in each for each in found)
    assert main([str(saved)]) == 1


def test_any_edit_at_all_is_caught_by_the_hash(saved):
    edit(saved, lambda content: content.update(headline="PASS: all is well"), sign=False)
    assert rescore(saved) == [
        "report.json was changed after it was written: its content no longer has the hash it records"
    ]


DECIDED_OTHERWISE = {
    "verdict": (lambda c: c.update(verdict="GO"), "recorded verdict GO, follows NO-GO"),
    "total": (lambda c: c.update(total=12.0), "recorded total 12.0, follows None"),
    "score": (lambda c: c["categories"]["stability"].update(score=3), "recorded categories"),
    "gate": (lambda c: c["hard_gates"][0].update(status="PASS"), "recorded hard_gates"),
    "settled": (lambda c: c["settled"][0].update(status="PASS"), "recorded settled"),
    "exit code": (lambda c: c.update(exit_code=0), "recorded exit_code 0, follows 1"),
    "a seed more": (lambda c: c.update(seeds=[0]), "recorded reasons"),
    "scope": (lambda c: c.update(interrupted=2), "recorded reasons"),
    "record of another model": (lambda c: c["records"][1].update(model="HY"), "recorded settled"),
    "an item never planned": (lambda c: c["planned"].pop("b"), "recorded settled"),
    "a seal less": (lambda c: c["seals"].pop(1), "recorded settled"),
}


@pytest.mark.parametrize(("change", "fault"), DECIDED_OTHERWISE.values(), ids=DECIDED_OTHERWISE)
def test_a_decision_that_does_not_follow_is_caught_though_its_hash_fits(graduation, change, fault):
    edit(graduation, change)
    found = rescore(graduation)
    assert any(fault in each for each in found), found


def test_a_waiver_that_had_expired_when_the_report_was_made_is_caught(tmp_path):
    waiver = Waiver(check="A1", owner="Ada", reason="repeated by hand", expires=date(2026, 2, 28))
    directory = write(tmp_path, measured(0.01), claim(Status.PASS), graduates=True, waivers=[waiver])
    assert rescore(directory) == ["the waiver of A1 had expired on 2026-02-28, before the report was made"]
    edit(directory, lambda c: c["provenance"].pop("date"))
    assert any("does not say when it was made" in fault for fault in rescore(directory))


def test_limits_that_were_loosened_afterwards_are_caught(saved):
    table = saved / "thresholds.toml"
    table.write_text(table.read_text().replace("3.0]", "9.0]"))
    faults = rescore(saved)
    assert "thresholds.toml is not the file whose hash the report recorded" in faults
    assert any("was judged by other limits" in fault for fault in faults)


def test_items_that_were_changed_afterwards_are_caught(saved):
    path = saved / "items.jsonl"
    path.write_text(path.read_text().replace("1.0", "0.5"))
    assert rescore(saved) == [
        f"{path} is not the file whose hash the report recorded; take the directory as --report wrote it"
    ]


def rewrite(**fields):
    def change(directory):
        path = directory / "report.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, **fields}))

    return change


def without(*keys):
    def change(directory):
        path = directory / "report.json"
        content = json.loads(path.read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        path.write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("records", 0, "status"), "[records.0.status] Field required"),
        (without("seals"), "[seals] Field required"),
        (without("planned"), "[planned] Field required"),
        (without("schema_version"), "has schema version None"),
        (rewrite(schema_version=99), "has schema version 99; this program reads 2: install the version that wrote it"),
        (rewrite(schema_version=1), "make the report again with this version"),
        (rewrite(unknown=1), "[unknown] Extra inputs are not permitted"),
        (lambda directory: (directory / "report.json").write_text("[]"), "has schema version None"),
        (lambda directory: (directory / "report.json").write_text("{"), "is no JSON"),
        (lambda directory: (directory / "report.json").write_bytes(b"\xff"), "is no text"),
        (lambda directory: (directory / "report.json").unlink(), "give a directory that --report wrote"),
        (lambda directory: (directory / "evidence.toml").unlink(), "No such file"),
        (lambda directory: (directory / "thresholds.toml").unlink(), "the tables in force belong to a report"),
        (lambda directory: (directory / "checks.toml").write_text("[A1"), "not TOML"),
    ],
)
def test_what_cannot_be_read_as_a_report_is_bad_usage(saved, change, why, capsys):
    change(saved)
    assert main([str(saved)]) == 4
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said
