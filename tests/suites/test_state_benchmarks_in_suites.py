"""SB1 to SB3 from end to end on small tasks: a healthy hybrid passes, a deaf one does not."""

import pytest
from suite_runner import MADE_UP_REGISTRIES, SMALL, run_suites

SHORT = (*SMALL, "-p", "short_lessons", "-p", "short_benchmarks", "--seeds", "1", "--set", "train.threads=1",
         "-k", "sb1 or sb2 or sb3")  # fmt: skip


@pytest.mark.slow
def test_a_healthy_hybrid_passes(store, tmp_path):
    run = run_suites(
        store, tmp_path / "report", *SHORT, suites="suites/canaries", marker="small", env=MADE_UP_REGISTRIES
    )

    for check in ("SB1", "SB2", "SB3"):
        assert run.status(check) == "PASS", run.output
    # each task, and the control that nothing with decays in [0, 1] can pass
    assert {record["case"] for record in run.records("SB1", "state_use")} == {"4 pairs", "copying"}
    assert run.statuses("SB2", "parity_is_lost") == {"PASS"}
    assert len(list((tmp_path / "report").glob("plots/recall-by-state.png"))) == 1
    infos = {(record["check"], record["metric"]) for record in run.report["records"] if record["info"]}
    assert {("SB1", "reset_accuracy"), ("SB2", "parity_accuracy"), ("SB3", "state_bytes")} <= infos


@pytest.mark.slow
def test_a_deaf_model_fails(store, tmp_path):
    run = run_suites(store, tmp_path / "report", *SHORT, "--model", "mutant:deaf", suites="suites/canaries",
                     marker="small", env=MADE_UP_REGISTRIES)  # fmt: skip

    for check, metric in (("SB1", "state_use"), ("SB2", "state_use"), ("SB3", "recalled_pairs")):
        assert run.statuses(check, metric) == {"FAIL"}, run.output
        assert run.status(check) == "FAIL"
