"""Every check can say no: its mutants FAIL it, by the metric meant to see them, and a healthy model does not."""

import pytest
from suite_runner import SMALL, run_suites

from fixtures.mutants import LATE_STEP, MUTANTS
from harness.checks import load_checks

SHORT = (*SMALL, "--set", f"train.steps={LATE_STEP + 10}")
SPIKED = (*SMALL, "--set", f"train.steps={2 * LATE_STEP + 230}")

# mutant -> the metric that must see it, the tests to select, and the size of the run
SEEN_BY = {
    "dropped_state_gradient": ("parity_error", "g0 and oracle and wkv6", SHORT),
    "acausal": ("causality_leak", "g1 and later_one", SHORT),
    "batch_leak": ("batch_leak", "g1 and another_one", SHORT),
    "state_not_carried": ("carry_logits_error", "g1 and carried", SHORT),
    "detached_rwkv": ("tensors_without_gradient", "g1 and every_tensor", SHORT),
    "collapsed_init": ("init_entropy_share", "g2", SHORT),
    "shuffled_targets": ("context_gain", "g3_training and unigram and validation", SHORT),
    "exploding_gradient": ("grad_norm_median", "g3_training and gradients", SHORT),
    "nan_late": ("training_finished", "g3_training and loss_falls", SHORT),
    "frozen_state": ("state_motion", "g3_5 and moves", SHORT),
    "dead_rwkv": ("state_sensitivity", "g4 and keeps", SHORT),
    "dead_mamba": ("state_sensitivity", "g4 and keeps", SHORT),
    "loss_spike": ("severity", "stop", SPIKED),
}


def test_every_mutant_is_tried_here():
    assert SEEN_BY.keys() == MUTANTS.keys()


def test_every_check_names_the_mutants_that_it_must_catch():
    for check in load_checks().values():
        caught = {name for name, mutant in MUTANTS.items() if mutant.caught_by == check.id}
        assert caught, f"{check.id} has no mutant"
        assert caught <= set(check.mutants), f"checks.toml [{check.id}] must list {sorted(caught)}"
        assert set(check.mutants) <= MUTANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_check_fails_its_mutant(name, store, tmp_path):
    metric, selection, size = SEEN_BY[name]
    run = run_suites(store, tmp_path / "report", "-k", selection, "--model", f"mutant:{name}", *size, suites="suites")

    check = MUTANTS[name].caught_by
    assert "FAIL" in run.statuses(check, metric), run.output
    assert run.status(check) == "FAIL"
    assert run.exit_code == 1


@pytest.mark.slow
def test_no_check_fails_a_healthy_model_by_those_metrics(store, tmp_path):
    selection = " or ".join(f"({selection})" for _, selection, _ in SEEN_BY.values())
    run = run_suites(store, tmp_path / "report", "-k", selection, *SPIKED, suites="suites")

    for name, (metric, _, _) in SEEN_BY.items():
        statuses = run.statuses(MUTANTS[name].caught_by, metric)
        assert statuses, f"{metric} was not judged\n{run.output}"
        assert "FAIL" not in statuses, f"{metric}: {run.output}"


@pytest.mark.slow
def test_a_frozen_state_is_sound_in_every_way_that_g1_looks_at(store, tmp_path):
    # were it not, G3.5 would never be asked
    run = run_suites(store, tmp_path / "report", "-k", "g1", "--model", "mutant:frozen_state")
    assert run.status("G1") == "PASS", run.output


@pytest.mark.slow
def test_a_late_nan_stops_the_training_and_leaves_later_checks_without_evidence(store, tmp_path):
    run = run_suites(store, tmp_path / "report", "-k", "g3 or g4 or stop", "--model", "mutant:nan_late", *SHORT)

    assert run.status("G3") == "FAIL"
    assert run.status("STOP") == "FAIL"
    assert run.status("G3.5") == "MISSING"
    assert run.status("G4") == "MISSING"
    assert run.exit_code == 1
    assert f"at step {LATE_STEP + 1}" in run.output
