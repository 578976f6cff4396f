"""S4: every branch remembers what it read, and what it remembers is heard."""

import pytest

pytestmark = pytest.mark.check("S4")


def test_every_branch_remembers_what_it_read(samples, judge):
    from harness.branch_health import raw_rms_ratio, state_sensitivities

    for seed, sample, where in samples:
        for branch, rho in state_sensitivities(sample, seed).items():
            judge("input_sensitivity", rho.value, ci=rho.ci, case=branch, branch=branch, **where)
        if len(sample.branch_names) > 1:
            note = f"{' over '.join(sample.branch_names[:2])}; comparable: false (see BALANCE)"
            judge.info("raw_rms_ratio", raw_rms_ratio(sample), note=note, **where)


def test_every_branch_is_heard(ablations, judge):
    for _, ablation, where in ablations:
        for branch in ablation.branches:
            kl = ablation.effect(branch).kl
            judge("activity", kl.value, ci=kl.ci, null_value=0, case=branch, branch=branch, **where)
