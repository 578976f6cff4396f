"""PARETO: which ways to fuse the branches are beaten on both loss and balance, and whether one costs the other."""

import pytest

pytestmark = pytest.mark.check("PARETO")


@pytest.fixture
def variants(bench, judge):
    """The runs of every fusion variant."""
    from fixtures.studies import require_seeds
    from fixtures.study_readings import variant_runs

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint, and this study trains")
    require_seeds(bench)
    return variant_runs(bench)


def test_seeds_are_different_trainings(variants, judge):
    for variant, runs in variants:
        same = len(runs) - len({run.checkpoint_sha256 for run in runs})
        judge.holds("seeds_differ", not same, case=variant.subject.name, value=same, unit="trainings")


def test_where_the_variants_stand(variants, bench, judge, publish_figure):
    import math

    from fixtures.study_readings import Sweep, felt, validation_loss
    from harness.metrics.pareto import is_trade_off, on_frontier, rank_correlation, standings
    from harness.metrics.trend import UnderpoweredError
    from harness.study_figures import frontier_figure, ranking_figure

    names = [variant.subject.name for variant, _ in variants]
    losses = [[validation_loss(run) for run in runs] for _, runs in variants]
    shares = [[felt(variant, run).smaller for run in runs] for variant, runs in variants]
    means = [tuple(sum(row) / len(row) for row in pair) for pair in zip(losses, shares, strict=True)]
    sweep = Sweep.of(bench)
    balance = [reading.smaller for reading in sweep.felt()]
    numbers = [value for table in (losses, shares) for row in table for value in row] + balance
    if judge.holds("outcome_is_finite", all(map(math.isfinite, numbers))) == "FAIL":
        return
    try:
        places = dict(zip(names, standings(losses, shares, seed=bench.seeds[0]), strict=True))
        correlation = rank_correlation(*zip(*means, strict=True), seed=bench.seeds[0])
        loss_slope = sweep.response([validation_loss(run) for run in sweep.runs]).slope
        balance_slope = sweep.response(balance).slope
    except UnderpoweredError as error:
        judge.invalid(str(error))

    for (name, place), (loss, share), (_, runs) in zip(places.items(), means, variants, strict=True):
        at = {"case": name, "n": len(runs)}
        judge.info("val_loss", loss, unit="nats/token", **at)
        judge.info("smaller_state_share", share, **at)
        judge.info("on_frontier", place.frontier, note="probability, over seeds", **at)
        judge.info("loss_rank", place.loss_rank.value, ci=place.loss_rank.ci, **at)
        judge.info("balance_rank", place.balance_rank.value, ci=place.balance_rank.ci, **at)
    at = {"n": correlation.n, "null_value": 0}
    judge.info("rank_correlation", correlation.rho, note="above 0: balance goes with a higher loss", **at)
    judge.info("permutation_p", correlation.p_value, n=correlation.n)
    knob = f"learning rate of the Mamba-2 branch of {bench.subject.name}: training has no penalty on imbalance to vary"
    judge.info("intervention_on_loss", loss_slope.value, ci=loss_slope.ci, unit="nats/token/doubling", note=knob)
    judge.info("intervention_on_balance", balance_slope.value, ci=balance_slope.ci, unit="1/doubling", note=knob)
    claimed = is_trade_off(correlation, loss_slope, balance_slope)
    judge.info("trade_off", int(claimed), note="seen across variants, and moved together by the intervention")

    points = dict(zip(names, means, strict=True))
    best = [name for name, on in zip(names, on_frontier(*zip(*means, strict=True)), strict=True) if on]
    publish_figure("pareto-frontier", frontier_figure("Loss and balance of fusion variants", points, best))
    publish_figure("pareto-ranking", ranking_figure("Fusion variants ranked by loss and by balance", places))
