"""The studies run from end to end, say what they found, and refuse what one seed cannot carry."""

import pytest
from suite_runner import MADE_UP_REGISTRIES, STUDY, run_suites

from harness.checks import load_checks

# the studies of mixers and of dialogues: test_studies_of_recall.py
STUDIES = [check for check in load_checks().values() if check.study and check.suite == "graduation"]

FOUND = {
    "LR-PROBE": {"slope", "curvature", "aicc_gain", "starved"},
    "TOKENISATION": {"bits_per_byte", "effect", "p_value", "compute_ratio"},
    "PARETO": {"on_frontier", "loss_rank", "rank_correlation", "permutation_p", "trade_off"},
    "GATES": {"share_at_warm_up", "drift", "slope", "spread", "ends_overlap", "attractor"},
    "FIX": {
        "state_share_change",
        "state_share_log_odds_change",
        "mean_state_share",
        "information_share_unread",
        "write_share_change",
        "coupling_share_unread",
        "loss_change",
        "activity_fails",
        "state_grad_clipped",
        "coupling_loss",
        "verdict",
    },
}
FIGURES = {"LR-PROBE": 1, "TOKENISATION": 3, "PARETO": 2, "FIX": 1, "GATES": 1}


@pytest.mark.slow
@pytest.mark.parametrize("check", STUDIES, ids=lambda check: check.id)
def test_a_study_runs_from_end_to_end(check, store, tmp_path):
    run = run_suites(store, tmp_path / "report", *STUDY, suites=check.path, env=MADE_UP_REGISTRIES)

    assert not {"MISSING", "INVALID"} & {r["status"] for r in run.report["records"]}, run.output
    assert {r["metric"] for r in run.report["records"]} >= FOUND[check.id], run.output
    assert len(list((tmp_path / "report").glob("plots/*.png"))) == FIGURES[check.id]


@pytest.mark.slow
@pytest.mark.parametrize("check", STUDIES, ids=lambda check: check.id)
def test_one_seed_is_refused(check, store, tmp_path):
    run = run_suites(store, tmp_path / "report", *STUDY, "--seeds", "1", suites=check.path, env=MADE_UP_REGISTRIES)

    assert run.status(check.id) == "INVALID", run.output
    assert "give --seeds 3" in run.output
