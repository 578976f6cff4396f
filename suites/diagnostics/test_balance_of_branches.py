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
def untrained(bench, require_hooks, judge):
    """``(seed, ratios, where)`` of the subject as a training would start it, whatever ``--checkpoint`` holds."""
    from dataclasses import replace

    from harness.interaction import has_two_branches
    from harness.raw_balance import raw_balance

    start, windows = replace(bench, checkpoint=None, _kept={}), bench.windows(8)
    found = []
    for seed in bench.seeds:
        model = start.fresh(seed)
        require_hooks(model, "state")
        if not has_two_branches(model, bench.device):
            judge.na("fewer than two branches have a state that lasts")
        where = {"case": "untrained", "seed": seed, "step": 0}
        where |= {"n": len(windows), "n_clusters": windows.num_documents}
        found.append((seed, raw_balance(model, windows, device=bench.device), where))
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


def test_each_branch_has_a_share_in_what_both_write(writes, raw, untrained, judge):
    for _, ratios, where in untrained:
        _show_type_a(judge, ratios, where)
    _show_spread(judge, "type_a", [ratios.output_variance_ratio for _, ratios, _ in untrained], "untrained")
    for (_, branches, where), (_, ratios, _) in zip(writes, raw, strict=True):
        smaller = min(branches, key=lambda branch: branch.share.value)
        judge("smaller_write_share", smaller.share.value, ci=smaller.share.ci, branch=smaller.branch, **where)
        for branch in branches:
            for layer, value in branch.layer_shares.items():
                judge.info("write_share", value, case=branch.branch, branch=branch.branch, layer=layer, **where)
        for branch, layers in (ratios.write_over_residual or {}).items():
            for layer, value in layers.items():
                judge.info("write_over_residual", value, note="RMS", case=branch, branch=branch, layer=layer, **where)
        _show_type_a(judge, ratios, where)
    _show_spread(judge, "type_a", [ratios.output_variance_ratio for _, ratios, _ in raw])


def test_no_branch_is_dead_by_its_writes_and_by_its_state(writes, ablations, judge):
    from harness.interaction import sign_of_life

    for (_, branches, where), (_, ablation, _) in zip(writes, ablations, strict=True):
        for branch in branches:
            kl = ablation.effect(branch.branch).kl.value
            life = sign_of_life(branch.share.value, kl)
            note = f"type A share {branch.share.value:.4f}, KL {kl:.2e} nats/token"
            judge("sign_of_life", life, case=branch.branch, branch=branch.branch, note=note, **where)


def test_the_raw_ratio_of_states_is_a_choice_of_units(raw, untrained, judge):
    for found, case in ((untrained, "untrained"), (raw, "")):
        for _, ratios, where in found:
            _show_type_b(judge, ratios, where)
        _show_spread(judge, "type_b", [ratios.state_variance_ratio for _, ratios, _ in found], case)
    for seed, ratios, _ in raw:
        if ratios.enlarged_logit_change is None:
            judge.na("no branch's state can be given another unit from outside")
        change = ratios.enlarged_logit_change
        judge.holds("rescaling_keeps_the_function", change == 0, value=change, unit="logits", seed=seed)


def _show_type_a(judge, ratios, where):
    """The raw ratio of outputs; NaN, with who puts out nothing, where there is none."""
    if ratios.output_variance_ratio is None:
        return
    note = f"{' over '.join(ratios.branches)}, before fusion; {THEN['A']}"
    if ratios.silent_outputs:
        silent = " and ".join(ratios.silent_outputs)
        note = f"no ratio exists: the output of {silent} does not vary (an RWKV-6 starts with an output matrix of zero)"
    judge.info("type_a_raw_ratio", ratios.output_variance_ratio, note=note, **where)


def _show_type_b(judge, ratios, where):
    """The raw ratio of states, and that of the same function in other units where the model has some."""
    note = f"{' over '.join(ratios.branches)}, variances of the true states; comparable: false; {THEN['B']}"
    judge.info("type_b_raw_ratio", ratios.state_variance_ratio, note=note, **where)
    if ratios.enlarged_variance_ratio is None:
        return
    note = "of the same function, its keys times 1024 and its receptances divided by it"
    if ratios.silent_outputs:
        note += f"; {' and '.join(ratios.silent_outputs)} puts out nothing, so any state would keep the logits"
    judge.info("type_b_raw_ratio_rescaled", ratios.enlarged_variance_ratio, note=note, **where)


def _show_spread(judge, name, ratios, case=""):
    """How far the log of a raw ratio varies over seeds; nothing where a seed has no ratio or there is one seed."""
    from harness.raw_balance import log_spread

    spread = log_spread(ratios)
    if spread is not None:
        judge.info(f"{name}_log_spread", spread, unit="nats", case=case, n=len(ratios), note="over seeds, of the log")
