"""G3.5: the recurrent state of a trained model moves, depends on what was read, and uses more than one direction."""

import pytest

pytestmark = pytest.mark.check("G3.5")


@pytest.fixture
def health(samples):
    """``(branch health, where)`` for every branch of everything trained."""
    from harness.branch_health import state_health

    return [
        (branch, where | {"case": branch.branch, "branch": branch.branch})
        for seed, sample, where in samples
        for branch in state_health(sample, seed)
    ]


def test_every_state_moves_and_depends_on_the_input(health, judge):
    for branch, where in health:
        rho = branch.sensitivity
        judge("input_sensitivity", rho.value, ci=rho.ci, **where)
        if branch.motion is None:
            continue  # the model reports no innovations: its dependence on the input is all there is to judge
        judge("state_motion", branch.motion, note=f"median innovation {branch.innovation:.2e}", **where)
        judge.info("timescale", branch.timescale, unit="tokens", **where)
        if branch.decays is not None:
            judge.info("short_decays", branch.decays.short, note="below .01", **where)
            judge.info("long_decays", branch.decays.long, note="above 1 - 1e-4", **where)


def test_no_head_has_collapsed_to_one_direction(health, judge):
    matrices = [(branch, where) for branch, where in health if branch.effective_rank is not None]
    if not matrices:
        judge.na("no branch has a matrix for a state, so none has a rank")
    for branch, where in matrices:
        judge("effective_rank", branch.effective_rank, null_value=branch.null_rank, **where)
        judge.info("top5_singular_share", branch.top5_share, null_value=branch.null_top5_share, **where)


def test_mixing_gates_are_not_stuck(samples, judge):
    from harness.branch_health import layer_gate_saturation

    for _, sample, where in samples:
        if not sample.gate_logits:
            judge.na("the model has no mixing gate")
        for layer, saturation in layer_gate_saturation(sample).items():
            judge("gate_saturation", saturation, case=f"layer {layer}", layer=layer, **where)
