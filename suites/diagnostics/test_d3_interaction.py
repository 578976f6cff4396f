"""D3: what each branch keeps is heard: swapping it for another document's changes what is said next."""

import pytest

pytestmark = pytest.mark.check("D3")


def test_a_swap_with_itself_changes_nothing(bench, trained, require_hooks, judge):
    from harness.interaction import self_swap

    for seed, model, _ in trained:
        require_hooks(model, "state")
        change = self_swap(model, bench.windows(16), device=bench.device)
        judge.holds("self_swap_is_exact", change == 0, value=change, unit="nats/token", seed=seed)


def test_every_branch_is_active(ablations, bench, judge, publish_figure):
    from harness.interaction_figures import figures

    for seed, ablation, where in ablations:
        for branch in ablation.branches:
            effect = ablation.effect(branch)
            note = f"loss {effect.delta.value:+.4f} [{effect.delta.low:+.4f}, {effect.delta.high:+.4f}] nats/token"
            at = where | {"case": branch, "branch": branch}
            judge("activity", effect.kl.value, ci=effect.kl.ci, null_value=0, note=note, **at)
        for effect in ablation.effects:
            at = where | {"case": f"{effect.branches}, {effect.replacement}, {effect.kinds}, {effect.horizon} tokens"}
            judge.info("loss_delta", effect.delta.value, ci=effect.delta.ci, unit="nats/token", null_value=0, **at)
            judge.info("kl", effect.kl.value, ci=effect.kl.ci, unit="nats/token", null_value=0, **at)
        for name, figure in figures(ablation, f"{bench.subject.name}, seed {seed}").items():
            publish_figure(f"{name}-seed-{seed}", figure)


def test_no_branch_holds_all_that_counts(ablations, judge):
    for _, ablation, where in ablations:
        if len(ablation.branches) == 1:
            judge.na("one branch: there is nothing to share")
        judge.info(
            "interaction",
            ablation.interaction.value,
            ci=ablation.interaction.ci,
            unit="nats/token",
            null_value=0,
            note="all branches at once, less the sum of each alone",
            **where,
        )
        if ablation.shares is None:
            why = "the losses do not differ from zero at this many documents: there is no ratio; see activity"
            if judge.demands("smaller_loss_share"):
                judge.missing(why)
            judge.na(f"{why}; not demanded at this scale")
        share = min(ablation.shares.values(), key=lambda share: share.value)
        judge("smaller_loss_share", share.value, ci=share.ci, note=ablation.describe_ratio(), **where)
