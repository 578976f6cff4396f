"""GATES: where mixing gates end that start at five places, and whether that is one place, an attractor."""

import pytest

pytestmark = pytest.mark.check("GATES")


@pytest.fixture
def starts(bench, judge):
    """The gates of every run of every start."""
    from fixtures.gate_readings import gate_paths
    from fixtures.studies import require_seeds

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint, and this study trains")
    require_seeds(bench)
    return gate_paths(bench)


def test_seeds_of_a_start_are_different_trainings(starts, judge):
    for start, paths in starts:
        same = len(paths) - len({path.run.checkpoint_sha256 for path in paths})
        judge.holds("seeds_differ", not same, case=start.subject.name, value=same, unit="trainings")


def test_every_gate_is_there_and_open_to_both(starts, judge):
    for start, paths in starts:
        for path in paths:
            at = {"case": start.subject.name, "seed": path.run.seed, "step": path.steps[-1]}
            judge.holds("gate_is_sound", not path.fault, note=path.fault, **at)


def test_where_the_gates_end(starts, bench, judge, publish_figure):
    import math

    from fixtures.gate_readings import MOMENTS, all_at_one_place, gate_attraction, mean_path
    from fixtures.study_readings import validation_loss
    from harness.metrics.trend import UnderpoweredError
    from harness.study_figures import gates_figure

    if any(path.fault for _, paths in starts for path in paths):
        judge.invalid("a gate is missing or shut: see gate_is_sound")
    losses = [validation_loss(path.run) for _, paths in starts for path in paths]
    if judge.holds("outcome_is_finite", all(map(math.isfinite, losses)), case="val_loss") == "FAIL":
        return
    for start, paths in starts:
        for path in paths:
            for moment in MOMENTS:
                at = {"case": start.subject.name, "seed": path.run.seed, "step": path.step_of(moment)}
                metric = f"share_at_{moment.replace('-', '_')}"
                judge.info(metric, path.at(moment).mean(), note="mean over layers", **at)
                for layer, share in enumerate(path.at(moment)):
                    judge.info(metric, share, layer=layer, **at)
            at = {"case": start.subject.name, **bench.where(path.run)}
            judge.info("drift", path.drift, unit="logits", null_value=0, note="above 0 towards RWKV-6", **at)
            judge.info("val_loss", validation_loss(path.run), unit="nats/token", **at)
    layers = range(starts[0].paths[0].shares_SL.shape[1])
    try:
        fits = {layer: gate_attraction(starts, layer) for layer in (None, *layers)}
    except UnderpoweredError as error:
        judge.invalid(str(error))
    for layer, fit in fits.items():
        at = {"layer": layer, "n": fit.starts * fit.slope.n, "n_clusters": fit.slope.n_clusters}
        known = "1: gates stay where they start, 0: all end at one place"
        judge.info("slope", fit.slope.value, ci=fit.slope.ci, null_value=1, note=known, **at)
        judge.info("intercept", fit.intercept.value, ci=fit.intercept.ci, unit="logits", **at)
        if fit.place is not None:
            far = "; extrapolated: the gates kept over half of their distances" if fit.extrapolated else ""
            judge.info("fixed_point", fit.place.value, ci=fit.place.ci, note=f"share of RWKV-6{far}", **at)
        judge.info("spread", fit.spread, null_value=1, note="final shares over initial ones", **at)
        judge.info("scatter", fit.scatter, note="residuals over what the gates moved, logits", **at)
        for name in ("misfit_p", "uneven_p", "gap_p"):
            judge.info(name, getattr(fit, name), **at)
        names = [start.subject.name for start, _ in starts]
        meeting = ", ".join(f"{names[i]} and {names[j]}" for i, j in fit.meeting)
        judge.info("ends_overlap", fit.meeting_share, note=meeting or "no two starts", **at)
        claimed = fit.is_attractor if layer is not None else all_at_one_place(fits)
        judge.info(
            "attractor",
            int(claimed),
            note=fit.verdict + ("; claimed if so in every layer" if layer is None else ""),
            **at,
        )
    lines = {
        f"{start.subject.name}, from {paths[0].at('start').mean():.2g}": mean_path(paths) for start, paths in starts
    }
    publish_figure("gates", gates_figure(f"Mixing gates of {bench.subject.scale} by where they start", lines))
