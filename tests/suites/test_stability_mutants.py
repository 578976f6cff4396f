"""STABILITY also fails what other checks are there to catch: a loss that does not come back, a number that is none."""

import pytest
from suite_runner import run_suites
from test_mutants import SHORT, SPIKED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "size"), [("loss_spike", "divergence", SPIKED), ("nan_late", "non_finite", SHORT)]
)
def test_the_check_fails_the_mutant(name, metric, size, store, tmp_path):
    selection = ("-k", "stability_over and not seeds_agree", "--model", f"mutant:{name}")
    run = run_suites(store, tmp_path / "report", *selection, *size, suites="suites")

    assert "FAIL" in run.statuses("STABILITY", metric), run.output
    assert run.status("STABILITY") == "FAIL"
