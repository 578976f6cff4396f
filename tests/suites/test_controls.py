"""A model that only looks odd is judged as its base is: no limit depends on the unit of a state."""

import pytest
from suite_runner import SMALL, run_suites

from fixtures.mutants import CONTROLS
from fixtures.subjects import resolve
from harness.errors import HarnessError

SHORT = (*SMALL, "--set", "train.steps=70")
SELECTED = "d3 or s4 or balance or g3_5 or g4"


def judged(run):
    return {
        (r["check"], r["metric"], r["case"], r["layer"], r["branch"]): (r["status"], r["value"])
        for r in run.report["records"]
        if not r["info"]
    }


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_found_by_name_and_described_as_its_base(name):
    subject, base = resolve(f"control:{name}", "3.5M"), resolve(CONTROLS[name].base, "3.5M")
    assert subject.describe(512) == base.describe(512)
    assert subject.identity != base.identity
    assert subject.mutant is None


def test_an_unknown_control_is_refused_with_a_near_match():
    with pytest.raises(HarnessError, match="Did you mean control:branch_scaled_1000x"):
        resolve("control:branch_scaled", "3.5M")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_no_judged_number_differs_from_that_of_the_base(name, store, tmp_path):
    arguments = ("-k", SELECTED, *SHORT)
    base = run_suites(store, tmp_path / "base", *arguments, "--model", CONTROLS[name].base, suites="suites")
    control = run_suites(store, tmp_path / "control", *arguments, "--model", f"control:{name}", suites="suites")

    assert {check for check, *_ in judged(base)} >= {"D3", "S4", "BALANCE", "G3.5", "G4"}, base.output
    assert judged(control) == judged(base)
    raw = [
        next(r["value"] for r in run.report["records"] if r["metric"] == "type_b_raw_ratio") for run in (base, control)
    ]
    assert raw[1] > 1e5 * raw[0]
