"""SB1: what a trained architecture answers of what only its state can hold."""

import pytest

pytestmark = pytest.mark.check("SB1")


@pytest.mark.parametrize("task", ["recall", "copying"])
def test_the_state_holds_what_was_told(task, bench, judge):
    from fixtures.state_benchmarks import BENCHMARKS, learned, state_use, unproven
    from harness.labelled import TaskError
    from harness.metrics.forced_choice import leaks

    name = BENCHMARKS[task].judged
    try:
        runs = learned(bench, task)
        reason = unproven(bench, task, runs)
    except TaskError as error:
        judge.missing(str(error))
    if reason:
        judge.invalid(reason)
    for run in runs:
        use = state_use(bench, run, task)
        at = {"case": name, "seed": run.seed, "n": use.gain.n, "step": run.result.outcome.steps}
        judge.info("carried_accuracy", use.carried.value, ci=use.carried.ci, null_value=use.chance, **at)
        judge.info("reset_accuracy", use.blind.value, ci=use.blind.ci, null_value=use.chance, **at)
        if leaks(use.blind, use.chance):
            judge.invalid(
                f"{name}: {use.blind.value:.2f} right without what was told, where chance is {use.chance:.3g}: the "
                "task gives its answers away, or a state outlives its text"
            )
        judge("state_use", use.gain.value, ci=use.gain.ci, null_value=0, **at)
