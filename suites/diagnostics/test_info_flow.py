"""INFO: the state tells the model something of the next token, and every branch has its part in that."""

import pytest

pytestmark = pytest.mark.check("INFO")

TARGETS = {"3.5M": 96}
"""Targets by scale; 128 where nothing is said."""


@pytest.fixture
def flows(bench, trained, require_hooks, judge):
    """``(seed, flow, where)`` of everything trained."""
    from fixtures.bench import SAMPLE_WINDOWS
    from harness.information_flow import InformationFlow, measure_flow
    from harness.interaction import branches_with_memory

    windows = bench.windows(SAMPLE_WINDOWS.get(bench.subject.scale, 256))
    targets = TARGETS.get(bench.subject.scale, 128)
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        if not branches_with_memory(model, bench.device):
            judge.na("no branch has a state that lasts, so none can tell anything")
        measured = bench.measured(
            f"information flow at {targets} targets of {len(windows)} windows, seed {seed}",
            InformationFlow,
            model,
            lambda model=model, seed=seed: measure_flow(
                model, windows, device=bench.device, seed=seed, targets=targets
            ),
        )
        if measured.invalid:
            judge.invalid(measured.invalid)
        found.append((seed, measured, where | {"n": measured.targets, "n_clusters": measured.documents}))
    return found


def test_the_state_says_something_of_the_next_token(flows, judge):
    for _, flow, where in flows:
        note = f"at most {flow.upper:.4f} by the upper bound, {flow.donors} donors"
        judge("total", flow.total.value, ci=flow.total.ci, null_value=flow.null, note=note, **where)
        judge("same_donor", flow.null, note="every donor is the target itself", **where)
        judge.info("bracket", flow.bracket, note="upper bound over lower, less 1", **where)
        for case, value in (("long states", flow.joint), ("all states", flow.joint_all)):
            judge.info("joint_total", value.value, ci=value.ci, unit="nats/token", **where | {"case": case})
        judge.info("divergence", flow.divergence.value, ci=flow.divergence.ci, unit="nats/token", **where)


def test_every_branch_has_a_part_in_it(flows, bench, judge, publish_figure):
    from harness.figures import LineFigure

    for seed, flow, where in flows:
        if not flow.flow:
            judge.na(f"{len(flow.branches)} branch: there is nothing to share")
        if flow.shares is None:
            judge.invalid("the state says nothing of the next token, so there is nothing to have a share in")
        for branch, share in flow.shares.items():
            part, at = flow.flow[branch], where | {"case": branch, "branch": branch}
            judge("share", share.value, ci=share.ci, **at)
            judge.info("flow", part.value, ci=part.ci, unit="nats/token", null_value=0, **at)
            judge.info("flow_alone", flow.alone[branch], unit="nats/token", **at)
            judge.info("flow_beside_the_other", flow.given[branch], unit="nats/token", **at)
        judge.info("synergy", flow.synergy.value, ci=flow.synergy.ci, unit="nats/token", null_value=0, **where)
        lines = {b: [(t, parts[b]) for t, parts in sorted(flow.by_position.items())] for b in flow.branches}
        title = f"{bench.subject.name}, seed {seed}: what each state tells of the next token"
        publish_figure(f"information-flow-seed-{seed}", LineFigure(title, "tokens read", "nats/token", {"": lines}))
