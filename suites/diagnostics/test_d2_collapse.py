"""D2: the state of every branch differs between documents, in more than one direction, and has not stopped doing so."""

import pytest

pytestmark = pytest.mark.check("D2")


@pytest.fixture
def show_likeness(bench, trained, judge, publish_figure):
    """Records how alike the states of all branches and layers are: information, never judged."""

    def show():
        from harness.collapse import LIKENESS_LENGTH, LIKENESS_WINDOWS, Likeness, likeness
        from harness.figures import MatrixFigure

        windows = bench.windows(LIKENESS_WINDOWS, min(LIKENESS_LENGTH, bench.config.data.seq_len))
        for seed, model, where in trained:
            found = bench.measured(
                f"likeness of states on {len(windows)} windows of {windows.length}, seed {seed}", Likeness, model,
                lambda model=model, seed=seed: likeness(model, windows, device=bench.device, seed=seed),
            )  # fmt: skip
            at = where | {"n": found.num_windows, "n_clusters": found.num_documents}
            for layer, value, null in found.branches:
                judge.info("branch_cka", value, null_value=null, layer=layer, **at)
            figure = MatrixFigure("Likeness of states (debiased CKA)", "state", "state", "CKA",
                                  found.values, found.sites, found.sites)  # fmt: skip
            publish_figure(f"state-likeness-seed-{seed}", figure)

    return show


def test_states_differ_between_documents(state_spreads, show_likeness, judge):
    for _, spreads, where in state_spreads:
        for branch, rho in spreads.rho.items():
            judge("sensitivity", rho.value, ci=rho.ci, case=branch, branch=branch, **where)
    show_likeness()


def test_states_differ_in_more_than_one_direction(state_spreads, judge):
    for _, spreads, where in state_spreads:
        for site in spreads.sites:
            found = site.directions
            at = where | {"layer": site.layer, "branch": site.branch}
            judge("directions", found.value, ci=found.ci, null_value=site.null, **at)
            if site.utilisation is not None:
                judge.info("effective_rank", site.rank, unit="directions", note="median head", **at)
                judge.info("spectral_utilisation", site.utilisation, **at)


def test_what_the_training_taught_the_state_to_tell_is_not_lost(training_steps, judge):
    for _, layers, where in training_steps:
        if not layers:
            judge.missing(
                "the log has no two looks at the states after the warm-up, the second past half of the training"
            )
        for layer in layers:
            site = {"layer": layer.layer, "branch": layer.state.partition(".")[0], "case": layer.state}
            note = f"from {layer.rho[layer.warmed]:.3g} at step {layer.steps[layer.warmed]}"
            judge("kept_sensitivity", layer.kept_sensitivity, note=note, **where, **site)
            if layer.sensitivity_trend is not None:
                judge.info("sensitivity_trend", layer.sensitivity_trend, unit="1/e-fold of steps", **where, **site)
