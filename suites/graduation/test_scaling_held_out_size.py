"""SCALING: larger sizes are better, by a law that predicted the loss of this scale before it was trained."""

import pytest

pytestmark = pytest.mark.check("SCALING")


@pytest.fixture
def scaling(bench, judge, finished_runs_of):
    """The fit of the ladder, its registered prediction, and the run that came after."""
    from fixtures.ladder import held_out_seed
    from fixtures.scaling import measure_scaling
    from fixtures.subjects import SubjectError
    from harness.graduation.predictions import PredictionError
    from harness.metrics.trend import UnderpoweredError

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a single size: a law needs trainings of several")
    if held_out_seed(bench) in bench.seeds:
        judge.invalid(f"seed {held_out_seed(bench)} is kept for the run that is predicted: give fewer --seeds")
    try:
        return bench.once(("scaling",), lambda: measure_scaling(bench, finished_runs_of))
    except SubjectError as error:
        judge.missing(str(error))
    except (UnderpoweredError, PredictionError) as error:
        judge.invalid(str(error))


@pytest.fixture
def where(scaling, bench):
    """What every number is over: the runs of the ladder and their seeds."""
    return {"n": len(scaling.fit.runs.losses), "seed": sorted({t.seed for t in bench.trainings("ladder")})}


def test_larger_is_better_at_every_length(scaling, where, judge):
    from harness.metrics.scaling import Runs, falls

    runs, last = scaling.fit.runs, scaling.held_out
    columns = [[*getattr(runs, name), *getattr(last, name)] for name in ("sizes", "tokens", "losses")]
    found = falls(Runs.of(*columns))
    note = f"largest rise between neighbours {found.rise:+.4f} nats, smallest fall over a length {found.fall:.4f}"
    judge("monotone", int(found.monotone), null_value=0, note=note, **where)
    exponent = scaling.fit.exponent()
    judge("size_exponent", exponent.value, ci=exponent.ci, null_value=0, **where)


def test_the_held_out_size_was_predicted(scaling, where, judge, publish_figure):
    from harness.metrics.scaling import log_linear, persistence
    from harness.scaling_figure import scaling_figure

    runs, prediction = scaling.fit.runs, scaling.prediction
    [size], [tokens], [loss] = scaling.held_out.sizes, scaling.held_out.tokens, scaling.held_out.losses
    naive = {"persistence": persistence(runs, tokens), "log-linear": log_linear(runs, size, tokens)}
    errors = {name: abs(value - loss) / loss for name, value in naive.items()}
    error = abs(prediction.value - loss) / loss
    said = ", ".join(f"{name} {value:.4f}" for name, value in naive.items())
    note = f"predicted {prediction.value:.4f}, found {loss:.4f}; {said} nats; {prediction.short}"
    judge("held_out_error", error, null_value=errors["persistence"], note=note, **where)
    covered = prediction.low <= loss <= prediction.high
    judge("interval_covers", int(covered), note=f"[{prediction.low:.4f}, {prediction.high:.4f}] nats", **where)
    judge("gain_over_naive", min(errors.values()) - error, null_value=0, note=said, **where)
    publish_figure("scaling-law", scaling_figure(scaling.fit, prediction, scaling.held_out))


def test_the_law_fits_what_it_was_fitted_to(scaling, where, judge):
    terms = ", ".join(f"{name} {value:.4g}" for name, value in scaling.fit.law.coefficients.items())
    judge("r_squared", scaling.fit.r_squared, note=terms, **where)
    upcoming = scaling.extrapolation
    if upcoming is not None:
        judge.info(
            "extrapolation", upcoming.value, ci=(upcoming.low, upcoming.high), unit="nats/token",
            case=f"{scaling.next_scale}, as many tokens", note=upcoming.short, **where,
        )  # fmt: skip
