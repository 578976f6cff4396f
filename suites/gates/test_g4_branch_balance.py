"""G4: both branches of a hybrid are alive: gradients reach them, and what they write depends on the input.

The ratio of gradient norms is printed because people expect it. It is no measure of contribution, so alone it can only
WARN (docs/metrics.md, G4).
"""

import pytest

pytestmark = pytest.mark.check("G4")


def test_gradients_of_the_branches_are_in_proportion(finished_runs, bench, judge):
    for run in finished_runs:
        ratios = run.log.branch_ratios(seed=run.seed)
        where = bench.where(run) | {"n": ratios.steps}
        judge("gradient_ratio", ratios.gradients.value, ci=ratios.gradients.ci, note="RWKV-6 over Mamba-2", **where)
        judge.info("gradient_ratio_rms", ratios.per_parameter, note="per root of a parameter", **where)
        judge.info("update_ratio", ratios.updates.value, ci=ratios.updates.ci, note="of ||dW|| / ||W||", **where)
        for branch, norm in ratios.smallest_norm.items():
            judge("smallest_gradient_norm", norm, case=branch, branch=branch, **where)


def test_what_each_branch_keeps_depends_on_the_input(samples, judge):
    from harness.branch_health import state_health, write_health

    for seed, sample, where in samples:
        for branch in state_health(sample, seed):
            rho = branch.sensitivity
            judge("state_sensitivity", rho.value, ci=rho.ci, case=branch.branch, branch=branch.branch, **where)
        for branch in write_health(sample, seed):
            # withdrawn as a limit: a mixing gate makes the constant write of a dead branch vary (ADR-0009)
            rho = branch.sensitivity
            judge.info("write_sensitivity", rho.value, ci=rho.ci, case=branch.branch, branch=branch.branch, **where)


def test_each_branch_has_a_share_in_what_both_write(samples, judge):
    from harness.branch_health import write_health

    for seed, sample, where in samples:
        branches = write_health(sample, seed)
        if not branches:
            judge.na("the branches are in sequence, not in parallel: no layer has two writes to compare")
        for branch in branches:
            judge(
                "activation_share",
                branch.share.value,
                ci=branch.share.ci,
                case=branch.branch,
                branch=branch.branch,
                **where,
            )
            for layer, value in branch.layer_shares.items():
                judge("layer_activation_share", value, branch=branch.branch, layer=layer, **where)
