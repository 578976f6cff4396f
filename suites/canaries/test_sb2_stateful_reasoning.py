"""SB2: values that are told, changed and copied are followed; and what cannot be followed is not."""

import pytest

pytestmark = pytest.mark.check("SB2")


def test_changes_are_carried_by_the_state(bench, judge):
    from fixtures.state_benchmarks import learned, state_use, unproven, updates
    from harness.labelled import TaskError
    from harness.metrics.forced_choice import leaks

    try:
        runs = learned(bench, "variables")
        reason = unproven(bench, "variables", runs)
    except TaskError as error:
        judge.missing(str(error))
    if reason:
        judge.invalid(reason)
    for run in runs:
        use = state_use(bench, run, "variables")
        at = {"seed": run.seed, "n": use.gain.n, "step": run.result.outcome.steps}
        judge.info("carried_accuracy", use.carried.value, ci=use.carried.ci, null_value=use.chance, **at)
        for turn, found in use.reset.items():
            judge.info(
                "reset_accuracy", found.value, ci=found.ci, null_value=use.chance, case=f"before turn {turn}", **at
            )
        if leaks(use.blind, use.chance):
            judge.invalid(
                f"{use.blind.value:.2f} right without what was told, where chance is {use.chance:.3g}: the task gives "
                "its answers away, or a state outlives its text"
            )
        judge("state_use", use.gain.value, ci=use.gain.ci, null_value=0, **at)
        changed = updates(bench, run, "variables")
        at["n"] = changed.margin.n
        note = f"now {changed.current.value:.3f}, as first told {changed.stale.value:.3f}"
        judge("update_margin", changed.margin.value, ci=changed.margin.ci, null_value=0, note=note, **at)


def test_parity_is_lost_beyond_the_trained_length(bench, judge):
    from fixtures.state_benchmarks import STRETCH, beyond, cannot_count, learned
    from harness.labelled import TaskError

    try:
        runs = learned(bench, "parity")
    except TaskError as error:
        judge.missing(str(error))
    for run in runs:
        found, trained = beyond(bench, run, "parity"), run.result.dev["trained length"]
        far = found.accuracy
        at = {"seed": run.seed, "n": far.n, "null_value": found.chance}
        judge.info("parity_accuracy", trained.value, ci=trained.ci, case="trained length", **at)
        judge.info("parity_accuracy", far.value, ci=far.ci, case=f"{STRETCH} times that", **at)
        if not cannot_count(bench.subject, bench.config.data.vocab_size):
            continue  # this one may solve it
        if found.solved:
            judge.invalid(
                f"{far.value:.2f} of the parities are right at {STRETCH} times the trained length, which no state with "
                "decays in [0, 1] can do: the answers leak into what is read"
            )
        judge.holds("parity_is_lost", not found.solved, value=far.value, seed=run.seed)
