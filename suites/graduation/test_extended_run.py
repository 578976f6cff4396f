"""EXTENDED: training for twice as long makes nothing worse: loss, stopping criteria, health of the states."""

import pytest

pytestmark = pytest.mark.check("EXTENDED")


@pytest.fixture
def pair(finished_runs, bench, judge):
    """``(run of the preset, extended run)`` of the first seed; an extended run that does not finish is a FAIL."""
    [longer] = bench.runs_of("extended")
    finished = longer.outcome.status == "finished"
    note = f"{longer.config.train.steps} steps; {longer.outcome.reason}"
    judge.holds("training_finished", finished, seed=longer.seed, step=longer.outcome.steps, note=note)
    return finished_runs[0], longer if finished else None


@pytest.fixture
def readings(bench, sizes_of, require_hooks):
    """``readings(run)``: everything that the other checks judge of the states and the log of a run."""
    from harness.collapse import spreads
    from harness.extended import StateReadings, log_readings, state_readings
    from harness.step_growth import layer_steps

    def of(run):
        model = bench.model_of(run)
        require_hooks(model, "state")

        def measure():
            sample = bench.sample(run.seed, model)
            return state_readings(sample, spreads(sample, run.seed), sizes_of(model), run.seed)

        states = bench.measured(f"state readings, seed {run.seed}", StateReadings, model, measure)
        layers = layer_steps(run.log.of_kind("probe"), run.config.train.warmup_steps)
        return [*states.found, *log_readings(layers, bench.stop_criteria(run).severity)]

    return of


def test_the_loss_is_not_worse(pair, bench, judge):
    from harness.metrics.intervals import bootstrap_ratio

    run, longer = pair
    if longer is None:
        return
    before, after = run.log.final_evaluation(), longer.log.final_evaluation()
    change = bootstrap_ratio(after.minus(before), seed=run.seed)
    note = f"{after.value:.3f} after {longer.outcome.steps} steps, {before.value:.3f} after {run.outcome.steps}"
    where = bench.where(longer) | {"n": change.n, "n_clusters": change.n_clusters}
    judge("loss_change", change.value, ci=change.ci, null_value=0, note=note, **where)


def test_no_status_is_worse(pair, readings, bench, judge):
    from harness.extended import worsening
    from harness.thresholds import load_thresholds

    run, longer = pair
    if longer is None:
        return
    table = load_thresholds()
    found = worsening(readings(run), readings(longer), lambda *metric: table.find(*metric).at(bench.subject.scale))
    where = bench.where(longer) | {"n": found.compared}
    judge("worsened_to_warn", len(found.to_warn), null_value=0, note="; ".join(found.to_warn), **where)
    judge("worsened_to_fail", len(found.to_fail), null_value=0, note="; ".join(found.to_fail), **where)
