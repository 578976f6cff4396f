"""IMPROVEMENT: the subject is better at this scale than at the next smaller one, trained on the same tokens."""

import pytest

pytestmark = pytest.mark.check("IMPROVEMENT")


def test_a_larger_model_is_better(finished_runs, finished_runs_of, bench, judge):
    from harness.metrics.across_seeds import across_seeds
    from harness.metrics.improvement import gain_in_demanded_units

    if not bench.trainings("smaller"):
        judge.na("there is no smaller scale to be better than")
    changes = []
    for run, small in zip(finished_runs, finished_runs_of("smaller"), strict=True):
        before, after = small.log.final_evaluation(), run.log.final_evaluation()
        note = f"{after.value:.3f} against {before.value:.3f} at {small.subject.scale}"
        judge.info("loss_change", after.value - before.value, unit="nats/token", note=note, **bench.where(run))
        changes.append(gain_in_demanded_units(before, after))
    gain = across_seeds(changes, seed=bench.seeds[0])
    note = "one seed: its interval holds the spread of documents alone" if len(changes) == 1 else ""
    judge("gain", gain.value, ci=gain.ci, n=gain.n, n_clusters=gain.n_clusters, null_value=0, note=note)
