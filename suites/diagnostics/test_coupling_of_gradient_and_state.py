"""COUPLING: the loss hangs on the state of every branch, and not on one of them alone."""

import pytest

pytestmark = pytest.mark.check("COUPLING")


@pytest.fixture
def couplings(bench, trained, require_hooks, judge):
    """``(seed, coupling, where)`` of everything trained."""
    from fixtures.bench import SAMPLE_WINDOWS
    from harness.coupling import Coupling, measure_coupling
    from harness.interaction import branches_with_memory

    windows = bench.windows(SAMPLE_WINDOWS.get(bench.subject.scale, 256))
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        if not branches_with_memory(model, bench.device):
            judge.na("no branch has a state that lasts, so there is none to couple to")
        measured = bench.measured(
            f"coupling on {len(windows)} windows, seed {seed}",
            Coupling,
            model,
            lambda model=model, seed=seed: measure_coupling(model, windows, device=bench.device, seed=seed),
        )
        found.append((seed, measured, where | {"n": measured.windows, "n_clusters": measured.documents}))
    return found


def test_a_gradient_reaches_every_state(couplings, bench, judge, publish_figure):
    from harness.figures import LineFigure

    for seed, coupling, where in couplings:
        for branch, strength in coupling.strength.items():
            at = where | {"case": branch, "branch": branch}
            judge("strength", strength.value, ci=strength.ci, null_value=0, **at)
            judge.info("true_strength", coupling.true[branch], unit="nats", note="by exchange of states", **at)
            for layer, value in coupling.layers[branch].items():
                case = f"{branch}, layer {layer}"
                judge.info("layer_strength", value, unit="nats", **at | {"case": case, "layer": layer})
        judge.info("rank_agreement", coupling.agreement, note=f"{coupling.pairs} pairs of window and head", **where)
        lines = {branch: sorted(layers.items()) for branch, layers in coupling.layers.items()}
        title = f"{bench.subject.name}, seed {seed}: coupling of the loss to the state"
        publish_figure(f"coupling-seed-{seed}", LineFigure(title, "layer", "K (nats)", {"": lines}))


def test_no_branch_is_coupled_alone(couplings, judge):
    faults = []
    for seed, coupling, where in couplings:
        if coupling.ratio is None:
            judge.na(f"{len(coupling.branches)} branch: there is nothing to share")
        if coupling.invalid:
            # the other seeds say what they say, whichever comes first
            faults.append(f"seed {seed}: {coupling.invalid}")
            continue
        judge.info("distortion", coupling.distortion, note="of the ratio by the first order", **where)
        judge("ratio", coupling.ratio.value, ci=coupling.ratio.ci, null_value=1, note="larger over smaller", **where)
        for branch, share in coupling.shares.items():
            judge("share", share.value, ci=share.ci, **where | {"case": branch, "branch": branch})
    if faults:
        judge.invalid("; ".join(faults))
