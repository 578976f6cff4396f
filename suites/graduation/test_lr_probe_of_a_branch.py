"""LR-PROBE: how loss, balance and use of a branch answer to its learning rate, and whether the branch is starved."""

import pytest

pytestmark = pytest.mark.check("LR-PROBE")


@pytest.fixture
def sweep(bench, judge):
    """Every run of the subject with every learning rate of its Mamba-2 branch."""
    from fixtures.studies import require_seeds
    from fixtures.study_readings import Sweep

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint, and this study trains")
    require_seeds(bench)
    return Sweep.of(bench)


def test_the_branch_follows_its_learning_rate(sweep, judge):
    slope = sweep.update_slope("mamba")
    judge("update_response", slope.value, ci=slope.ci, n=slope.n, branch="mamba", null_value=0)
    other = sweep.update_slope("rwkv")
    judge.info("update_response_of_the_other", other.value, ci=other.ci, n=other.n, branch="rwkv", null_value=0)


def test_what_the_learning_rate_changes(sweep, bench, judge, publish_figure):
    import math

    from fixtures.study_readings import log_gradient_ratio, validation_loss
    from harness.study_figures import response_figure

    felt = sweep.felt()
    outcomes = {
        "val_loss": ("nats/token", [validation_loss(run) for run in sweep.runs]),
        "state_loss": ("nats/token", [reading.deltas["mamba"] for reading in felt]),
        "state_share": ("1", [reading.shares["mamba"] for reading in felt]),
        "log_gradient_ratio": ("nats", [log_gradient_ratio(run) for run in sweep.runs]),
    }
    found = {}
    for name, (unit, values) in outcomes.items():
        if judge.holds("outcome_is_finite", all(map(math.isfinite, values)), case=name) == "FAIL":
            return
        found[name] = sweep.response(values)
        at = {"case": name, "n": len(values), "null_value": 0}
        slope, curvature = found[name].slope, found[name].curvature
        judge.info("slope", slope.value, ci=slope.ci, unit=f"{unit}/doubling", **at)
        judge.info("curvature", curvature.value, ci=curvature.ci, unit=f"{unit}/doubling^2", **at)
        judge.info("aicc_gain", found[name].aicc_gain, note="above 0: the parabola predicts better", **at)
        for multiplier, run, value in zip(sweep.multipliers, sweep.runs, values, strict=True):
            judge.info(name, value, unit=unit, case=f"{multiplier:g}", **bench.where(run))
    # slower learning costs loss and use of the state: more would help both
    starved = found["val_loss"].slope.high < 0 < found["state_loss"].slope.low
    note = (
        "a higher rate lowers the loss and makes the state worth more" if starved else "not both improve with the rate"
    )
    judge.info("starved", int(starved), case="mamba", note=note)
    publish_figure(
        "lr-probe",
        response_figure(
            f"Learning rate of the Mamba-2 branch ({bench.subject.name})", "multiplier", sweep.multipliers,
            [run.seed for run in sweep.runs], {name: values for name, (_, values) in outcomes.items()},
        ),
    )  # fmt: skip
