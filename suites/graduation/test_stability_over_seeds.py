"""STABILITY: the trainings went steadily, and seeds agree."""

import pytest

pytestmark = pytest.mark.check("STABILITY")


def test_every_number_is_one(runs, bench, judge):
    from harness.stability import count_non_finite

    for run in runs:
        ended = run.outcome
        weights = None if ended.status == "diverged" else run.weights
        judge.holds("finished", ended.status == "finished", seed=run.seed, step=ended.steps, note=ended.reason)
        judge("non_finite", count_non_finite(run.log.rows, weights), **bench.where(run))


def test_validation_loss_stays_at_its_best(runs, bench, judge):
    from harness.stability import divergence

    for run in runs:
        losses = [row["val_loss"] for row in run.log.of_kind("eval")]
        diverged = run.outcome.status == "diverged"
        value = divergence([*losses, float("nan")] if diverged else losses)
        judge(
            "divergence",
            value,
            note=run.outcome.reason if diverged else f"{len(losses)} evaluations",
            **bench.where(run),
        )


def test_spikes_are_rare_and_recovered(runs, bench, judge):
    from fixtures.training import stop_limits
    from harness.stability import find_spikes

    for run in runs:
        spikes = find_spikes(run.log.rows, stop_limits())
        if not spikes.judged_steps:
            judge.invalid(f"{spikes.steps} steps with a loss: too few for a median to tell a spike by")
        at = f"at {', '.join(map(str, spikes.first_steps[:8]))}" if spikes.first_steps else "none"
        where = bench.where(run) | {"n": spikes.judged_steps, "note": at}
        judge("spikes_per_1000", spikes.per_1000, **where)
        judge("unrecovered_spikes", spikes.unrecovered, **where)


def test_few_updates_are_clipped(runs, bench, judge):
    from harness.stability import clip_fraction

    for run in runs:
        warmup, steps = run.config.train.warmup_steps, len(run.log.steps)
        judge("clip_fraction", clip_fraction(run.log.rows, warmup), n=max(0, steps - warmup), **bench.where(run))


def test_seeds_agree(finished_runs, bench, judge):
    from harness.stability import seed_deviation

    losses = [run.log.final_evaluation().value for run in finished_runs]
    seeds = [run.seed for run in finished_runs]
    if not losses[1:]:
        judge.missing("one seed: a standard deviation over seeds needs at least two; give --seeds 3")
    deviation, (low, high) = seed_deviation(losses)
    note = f"losses {', '.join(f'{loss:.3f}' for loss in losses)}; 90 % interval {low:.3f} to {high:.3f} if normal"
    judge("seed_sd", deviation, n=len(losses), seed=seeds, note=note)
