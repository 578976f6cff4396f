"""The published schema of report.json is that of the code, and reports meet it."""

import copy
import json
import math

import jsonschema
import pytest
from graduation_evidence import made, record
from graduation_report import facts, written_tables

from harness.records import Status
from harness.render import write_report
from harness.schema import SCHEMA_FILE, main, report_schema, schema_text


@pytest.fixture
def tables(tmp_path):
    return written_tables(tmp_path)


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_file_is_current(tmp_path, capsys):
    assert SCHEMA_FILE.read_text() == schema_text(), "python -m harness.schema"
    assert main([str(tmp_path / "s.json")]) == 0
    assert (tmp_path / "s.json").read_text() == schema_text()
    assert capsys.readouterr().out == f"{tmp_path / 's.json'}\n"


@pytest.mark.parametrize("graduates", [True, False])
def test_a_report_meets_it(graduates, tables, tmp_path, validator):
    evidence = made(canary=None, statuses={"G1": Status.FAIL})
    odd = record("NOTE", "odd", Status.NA, value=math.nan, ci=(-math.inf, math.inf), info=True)
    evidence = evidence.but(records=(*evidence.records, odd))
    write_report(facts(evidence, graduates=graduates), tables, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    validator.validate(content)
    assert content["records"][-1]["value"] == "nan"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.pop("content_sha256"),
        lambda c: c.update(verdict="PERHAPS"),
        lambda c: c.update(more=1),
        lambda c: c["records"][0].update(status="GREAT"),
        lambda c: c["records"][0].update(value="much"),
        lambda c: c["checks"][0].pop("status"),
    ],
    ids=["no hash", "verdict", "unknown field", "status", "number", "check without status"],
)
def test_what_is_no_report_does_not(spoil, tables, tmp_path, validator):
    write_report(facts(made()), tables, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    spoiled = copy.deepcopy(content)
    spoil(spoiled)
    validator.validate(content)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(spoiled)


def test_the_schema_names_its_dialect():
    assert report_schema()["$schema"].endswith("2020-12/schema")
