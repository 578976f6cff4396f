"""Every check can say no: its mutants FAIL it, by the metric meant to see them, and a healthy model does not."""

import pytest
from suite_runner import MADE_UP_REGISTRIES, SMALL, STUDY, run_suites, run_suites_when_quiet

from fixtures.mutants import LATE_STEP, MUTANTS
from harness.checks import load_checks

SHORT = (*SMALL, "--set", f"train.steps={LATE_STEP + 10}")
SPIKED = (*SMALL, "--set", f"train.steps={2 * LATE_STEP + 230}", "--set", "monitors.probe_every=10")
# with enough looks at the states to see how they move at the end
PROBED = (*SHORT, "--set", "monitors.probe_every=2")
# what times the machine: one thread, because a second core that something else keeps busy spoils nothing then
ALONE = (*SHORT, "--set", "train.threads=1")
# sizes that differ in one thing, far enough for a short training to tell them apart
WIDTHS = (*SMALL, "-p", "registry_of_widths", "--set", "train.steps=120")
# long enough for a cell to learn that its context counts
STUDY_LONGER = tuple(f"train.steps={LATE_STEP + 10}" if option == "train.steps=12" else option for option in STUDY)
# a narrow model that is taught to recall
LESSONS = ("-p", "short_lessons", "--set", "train.steps=60", "--set", "train.warmup_steps=20",
           "--set", "train.threads=1", "--set", "eval.tokens=4096", "--set", "eval.final_tokens=16384")  # fmt: skip
# mixers alone, at one learning rate
MIXERS = (*SMALL, "-p", "short_lessons", "-p", "short_benchmarks", "--set", "train.threads=1")

# mutant -> the metric that must see it, the tests to select, and the size of the run
SEEN_BY = {
    "dropped_state_gradient": ("parity_error", "g0 and oracle and wkv6", SHORT),
    "silent_reference": ("launched", "g0 and chosen_backends", SHORT),
    "ignored_initial_state": ("carry_error", "g0 and in_parts and wkv6", SHORT),
    "unwritten_tail": ("parity_error", "g0 and oracle and wkv6", SHORT),
    "unrepeatable_gradient": ("deterministic", "g0 and same_bits", SHORT),
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
    "state_is_proxy": ("round_trip_error", "s0 and remembers and fresh and float32", SHORT),
    "state_bf16": ("low_precision_tensors", "s0 and precision and fresh and float32", SHORT),
    "wrong_position_state": ("round_trip_error", "s0 and remembers and fresh and float32", SHORT),
    "growing_state": ("write_ratio", "s1_magnitude and written", SHORT),
    "clock_state": ("pair_distance", "s2_evolution", SHORT),
    "nondeterministic_state": ("state_difference", "s3_determinism and fresh", SHORT),
    "state_kept_between_calls": ("state_difference", "s3_determinism and fresh", SHORT),
    "conv_state_dropped": ("logits_error", "handoff and reading and fresh and float32", SHORT),
    "shift_state_dropped": ("logits_error", "handoff and reading and fresh and float32", SHORT),
    "step_differs_from_whole": ("logits_error", "handoff and reading and fresh and float32", SHORT),
    "leak_between_documents": ("logits_error", "handoff and packing and fresh and float32", SHORT),
    "loss_spike": ("severity", "stop", SPIKED),
    "dead_decay": ("half_life", "evolution and decays", SHORT),
    "context_blind": ("long_range_benefit", "d4 and far_back", SHORT),
    "amnesia": ("recalled_information", "memory and just_said", SHORT),
    "long_context_blowup": ("degradation", "d4 and beyond", SHORT),
    "state_ignored": ("activity", "d3 and active", SHORT),
    "one_branch_only": ("activity", "s4 and heard", SHORT),
    "rwkv_state_unread": ("share", "info_flow and part", SHORT),
    "mamba_state_detached": ("strength", "coupling and reaches", SHORT),
    "exploding_decay": ("position_ratio", "d1 and outgrows_the_trained", SHORT),
    "norm_creep": ("late_growth", "d1 and outgrows_its_training", PROBED),
    "rank_one_state": ("directions", "d2 and one_direction", SHORT),
    "rank_one_rwkv6": ("state_health_score", "shs", PROBED),
    "hoarder": ("error", "resource and as_predicted", ALONE),
    "muted_rwkv": ("sign_of_life", "balance and dead", SHORT),
    "starved_branch": ("share", "info_flow and part", SHORT),
    "deaf": ("final_loss", "overfit_small", SHORT),
    "undone_updates": ("unigram_margin", "baselines_naive", SHORT),
    "unsaved_memory": ("level", "resume_after", SHORT),
    "shaky_training": ("spikes_per_1000", "stability_over and spikes", SPIKED),
    "unmoved_mamba": ("update_response", "follows_its", STUDY),
    "shuffled_bytes": ("context_gain", "every_cell", STUDY_LONGER),
    "repeated_text": ("rise_from_least", "by_heart", STUDY_LONGER),
    "one_seed": ("seeds_differ", "different_trainings", STUDY),
    "larger_is_worse": ("monotone", "scaling_held and larger", WIDTHS),
    "speaks_in_braces": ("code_share", "replies", SHORT),
    "unsteady_voice": ("trained: the same seed says the same", "samples and not dialogues", SHORT),
    "state_reset_each_turn": ("accuracy", "c1_recall and at_once", LESSONS),
    "leak_between_conversations": ("conversations_apart", "c6_isolation and to_the_bit", LESSONS),
    "stale_value": ("reversion", "c3_tracking and correction", LESSONS),
    "goldfish": ("score", "sps", LESSONS),
    "forgetful_mixers": ("easiest_accuracy", "mqar", MIXERS),
}

# check and mutant of another check -> the same
ALSO_SEEN_BY = {
    ("C1b", "state_reset_each_turn"): ("accuracy", "c1_recall and a_few", LESSONS),
    ("CANARY", "state_reset_each_turn"): ("macro_accuracy", "canary_score", LESSONS),
    ("GROUNDING", "state_reset_each_turn"): ("heard", "grounding and heard", LESSONS),
    ("DRIFT", "state_reset_each_turn"): ("heard", "drift and a_change", LESSONS),
    ("GENOME", "frozen_state"): ("turn_distance", "genome", LESSONS),
    ("GATES", "one_seed"): ("seeds_differ", "different_trainings", STUDY),
    ("FIX", "one_seed"): ("seeds_differ", "trainings_of_its_own", STUDY),
}


def test_every_mutant_is_tried_here():
    assert SEEN_BY.keys() == MUTANTS.keys()


def test_every_check_names_the_mutants_that_it_must_catch():
    for check in load_checks().values():
        caught = {name for name, mutant in MUTANTS.items() if mutant.caught_by == check.id}
        caught |= {name for by, name in ALSO_SEEN_BY if by == check.id}
        # what the smallest scale does not ask for is tried on toys (tests/harness/test_context.py)
        assert caught or "3.5M" not in check.scales, f"{check.id} has no mutant"
        assert caught <= set(check.mutants), f"checks.toml [{check.id}] must list {sorted(caught)}"
        assert set(check.mutants) <= MUTANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.alone if SEEN_BY[name][2] == ALONE else ()) for name in MUTANTS]
)
def test_the_check_fails_its_mutant(name, store, tmp_path):
    metric, selection, size = SEEN_BY[name]
    check = MUTANTS[name].caught_by
    # a study runs only where its file is named
    suites = load_checks()[check].path if load_checks()[check].study else "suites"
    run = run_suites_when_quiet(store, tmp_path / "report", "-k", selection, "--model", f"mutant:{name}", *size,
                    suites=suites, env=MADE_UP_REGISTRIES)  # fmt: skip

    assert "FAIL" in run.statuses(check, metric), run.output
    assert run.status(check) == "FAIL"
    assert run.exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(("check", "name"), ALSO_SEEN_BY)
def test_a_check_fails_the_mutant_of_another(check, name, store, tmp_path):
    metric, selection, size = ALSO_SEEN_BY[check, name]
    suites = load_checks()[check].path if load_checks()[check].study else "suites"
    run = run_suites(store, tmp_path / "report", "-k", selection, "--model", f"mutant:{name}", *size,
                    suites=suites, env=MADE_UP_REGISTRIES)  # fmt: skip

    assert "FAIL" in run.statuses(check, metric), run.output
    assert run.status(check) == "FAIL"


@pytest.mark.slow
@pytest.mark.parametrize(
    "size",
    [SPIKED, WIDTHS, pytest.param(ALONE, marks=pytest.mark.alone), LESSONS],
    ids=["long", "of widths", "alone", "taught"],
)
def test_no_check_fails_a_healthy_model_by_those_metrics(size, store, tmp_path):
    # a healthy model in the studies: test_studies.py
    seen_by = {
        name: row
        for name, row in SEEN_BY.items()
        if not load_checks()[MUTANTS[name].caught_by].study
        and (row[2] == size if row[2] in (WIDTHS, ALONE, LESSONS) else size == SPIKED)
    }
    selection = " or ".join(f"({selection})" for _, selection, _ in seen_by.values())
    run = run_suites_when_quiet(store, tmp_path / "report", "-k", selection, *size,
                     suites="suites", env=MADE_UP_REGISTRIES)  # fmt: skip

    for name, (metric, _, _) in seen_by.items():
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
