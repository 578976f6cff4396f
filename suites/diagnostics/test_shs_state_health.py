"""SHS: the state-health score, as good as the weakest part of it. At least .7 says that every part passes its check."""

import pytest

pytestmark = pytest.mark.check("SHS")


def test_the_weakest_part_of_the_state_is_healthy(
    position_growths, training_steps, state_spreads, magnitudes, ablations, samples, settings, judge
):
    from harness.state_score import readings, score
    from harness.thresholds import load_thresholds

    limits = load_thresholds()
    parts = zip(position_growths, training_steps, state_spreads, magnitudes, ablations, samples, strict=True)
    for (_, growth, where), (_, layers, _), (_, spreads, _), (sizes, _), (_, ablation, _), (_, sample, _) in parts:
        found = readings(growth, layers, spreads, sizes, ablation, sample)
        if found.missing:
            judge.missing("; ".join(found.missing))
        scored = score(found.values, limits, settings.scale)
        at = where | {"n": sample.num_windows, "n_clusters": sample.num_documents}
        left_out = f"; left out: {', '.join(found.not_applicable)}" if found.not_applicable else ""
        judge("state_health_score", scored.total.value, note=f"weakest: {scored.total.weakest}{left_out}", **at)
        judge.info("mean_subscore", scored.total.mean, **at)
        for name, value in scored.subscores.items():
            judge.info("subscore", value, case=name, note=f"reading {found.values[name]:.4g}", **at)
