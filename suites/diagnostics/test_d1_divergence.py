"""D1: no state outgrows what its decays explain, along a text four times as long as in training or along the training.

All sizes are RMS by head. Growth while a state fills is no divergence, and neither is a long memory: the exponent is
held against what the same head's decays would do to writes that all point the same way (docs/metrics.md, D1).
"""

import pytest

pytestmark = pytest.mark.check("D1")


@pytest.fixture
def growths(position_growths, judge):
    """Those of ``position_growths`` that show something."""
    for _, growth, _ in position_growths:
        if growth.not_measured:
            judge.na(growth.not_measured)
    return position_growths


@pytest.fixture
def tracked(training_steps, judge):
    """``training_steps`` of logs that tell of states."""
    for _, layers, _ in training_steps:
        if not layers:
            judge.missing(
                "the log has no two looks at the states after the warm-up, the second past half of the training"
            )
    return training_steps


def _site(site):
    return {"case": site.kind, "layer": site.layer, "branch": site.branch}


def test_no_state_outgrows_the_trained_length(growths, judge, publish_figure):
    from statistics import median

    from harness.growth_figures import position_figures

    for seed, growth, where in growths:
        span = f"{growth.trained} to {growth.positions[-1]} tokens"
        for site in growth.sites:
            head = site.worst_head
            worst = site.ratios[head]
            judge("position_ratio", worst.value, ci=worst.ci, note=f"head {head} of {len(site.ratios)}, {span}",
                  **where, **_site(site))  # fmt: skip
            judge.info("median_position_ratio", median(r.value for r in site.ratios), note=span, **where, **_site(site))
        for position, change in zip(growth.positions, growth.losses, strict=True):
            case = f"up to {position} tokens"
            judge.info("loss_change", change.value, ci=change.ci, unit="nats/token", case=case, **where)
        for name, figure in position_figures(growth).items():
            publish_figure(f"{name}-seed-{seed}", figure)


def test_the_tail_grows_no_faster_than_the_decays_explain(growths, judge):
    for _, growth, where in growths:
        unexplained = [site for site in growth.sites if not site.null_exponents]
        if unexplained:
            judge.missing(f"no decays are reported for {_site(unexplained[0])}: see docs/bring-your-own-model.md")
        for site in growth.sites:
            excesses = site.excesses
            head = site.worst_excess
            judge("exponent_excess", excesses[head].value, ci=excesses[head].ci,
                  note=f"head {head}: N ~ t^{site.exponents[head].value:.2f}, null t^{site.null_exponents[head]:.2f}",
                  **where, **_site(site))  # fmt: skip


def test_a_filled_state_keeps_its_size(growths, judge):
    for _, growth, where in growths:
        settled = [(site, site.settled_median) for site in growth.sites]
        if not any(site.settled_cv for site in growth.sites):
            judge.missing("no decays are reported, so nobody knows when a state has filled")
        if all(found is None for _, found in settled):
            judge.na("in no layer do half of the heads settle within the text: they remember longer than was read")
        for site, found in settled:
            if found is not None:
                judge("position_cv", found.median, note=f"median of {found.heads} heads, the worst {found.worst:.2f}",
                      **where, **_site(site))  # fmt: skip


def test_no_state_outgrows_its_training(tracked, judge, publish_figure):
    from harness.growth_figures import step_figure

    for seed, layers, where in tracked:
        for layer in layers:
            site = {"layer": layer.layer, "branch": layer.state.partition(".")[0], "case": layer.state}
            growth, head = layer.late_growth
            judge(
                "late_growth",
                growth,
                note=f"head {head}, step {layer.steps[layer.middle]} to the last",
                **where,
                **site,
            )
            raw = max(layer.growth(layer.warmed))
            judge.info("growth_since_warmup", raw, note=f"since step {layer.steps[layer.warmed]}", **where, **site)
        publish_figure(f"state-size-by-step-seed-{seed}", step_figure(layers))


def test_the_size_of_a_state_holds_still_at_the_end(tracked, judge):
    for _, layers, where in tracked:
        for layer in layers:
            site = {"layer": layer.layer, "branch": layer.state.partition(".")[0], "case": layer.state}
            found = layer.late_variation
            if found is None:
                judge.missing("fewer than four looks at the states in the last fifth of the training")
            judge("step_cv", found[0], note=f"median head, the worst {found[1]:.2f}", **where, **site)
