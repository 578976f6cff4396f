"""BALANCE: the shares of two branches in what they write, and why ratios of raw sizes say nothing about them."""

import pytest

pytestmark = pytest.mark.check("BALANCE")

THEN = {
    "A": "71x was reported once: variance before the gate, of an untrained network, pooled over channels",
    "B": "108,583x was reported once: the unnormalised sum of one untrained network over the last output of another",
}


@pytest.fixture
def raw(bench, trained, require_hooks, judge):
    """``(seed, ratios as they used to be computed, where)`` of everything trained."""
    from harness.interaction import has_two_branches
    from harness.raw_balance import RawBalance, raw_balance

    windows = bench.windows(8)
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        if not has_two_branches(model, bench.device):
            judge.na("fewer than two branches have a state that lasts")
        measured = bench.measured(
            f"raw balance of {len(windows)} windows",
            RawBalance,
            model,
            lambda model=model: raw_balance(model, windows, device=bench.device),
        )
        found.append((seed, measured, where | {"n": len(windows), "n_clusters": windows.num_documents}))
    return found


@pytest.fixture
def writes(samples, judge):
    """``(seed, writes of each branch, where)``; NA where no layer has two writes."""
    from harness.branch_health import write_health

    found = []
    for seed, sample, where in samples:
        branches = write_health(sample, seed)
        if not branches:
            judge.na("the branches are in sequence, not in parallel: no layer has two writes to compare")
        found.append((seed, branches, where))
    return found


def test_each_branch_has_a_share_in_what_both_write(writes, raw, judge):
    for (_, branches, where), (_, ratios, _) in zip(writes, raw, strict=True):
        smaller = min(branches, key=lambda branch: branch.share.value)
        judge("smaller_write_share", smaller.share.value, ci=smaller.share.ci, branch=smaller.branch, **where)
        for branch in branches:
            for layer, value in branch.layer_shares.items():
                judge.info("write_share", value, case=branch.branch, branch=branch.branch, layer=layer, **where)
        for branch, layers in (ratios.write_over_residual or {}).items():
            for layer, value in layers.items():
                judge.info("write_over_residual", value, note="RMS", case=branch, branch=branch, layer=layer, **where)
        if ratios.output_variance_ratio is not None:
            note = f"{' over '.join(ratios.branches)}, before fusion; {THEN['A']}"
            judge.info("type_a_raw_ratio", ratios.output_variance_ratio, note=note, **where)


def test_no_branch_is_dead_by_its_writes_and_by_its_state(writes, ablations, judge):
    from harness.interaction import sign_of_life

    for (_, branches, where), (_, ablation, _) in zip(writes, ablations, strict=True):
        for branch in branches:
            kl = ablation.effect(branch.branch).kl.value
            life = sign_of_life(branch.share.value, kl)
            note = f"type A share {branch.share.value:.4f}, KL {kl:.2e} nats/token"
            judge("sign_of_life", life, case=branch.branch, branch=branch.branch, note=note, **where)


def test_the_raw_ratio_of_states_is_a_choice_of_units(raw, judge):
    for seed, ratios, where in raw:
        note = f"{' over '.join(ratios.branches)}, variances of the true states; comparable: false; {THEN['B']}"
        judge.info("type_b_raw_ratio", ratios.state_variance_ratio, note=note, **where)
        if ratios.enlarged_logit_change is None:
            judge.na("no branch's state can be given another unit from outside")
        judge.info(
            "type_b_raw_ratio_rescaled",
            ratios.enlarged_variance_ratio,
            note="of the same function, its keys times 1024 and its receptances divided by it",
            **where,
        )
        change = ratios.enlarged_logit_change
        judge.holds("rescaling_keeps_the_function", change == 0, value=change, unit="logits", seed=seed)
