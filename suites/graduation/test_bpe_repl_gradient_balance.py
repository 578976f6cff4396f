"""BPE-REPL: under byte-pair encoding the gradients of both branches stay in proportion, or both branches are alive.

The ratio measures no contribution (docs/metrics.md, G4), so alone it can only WARN.
"""

import pytest

pytestmark = pytest.mark.check("BPE-REPL")


def test_gradients_of_the_branches_stay_in_proportion(finished_runs, bench, judge, request):
    from harness.metrics.across_seeds import geometric_mean
    from harness.replication import dead_branches, is_alarming, replicates

    if bench.config.data.tokenizer != "bpe":
        judge.missing(f"the claim is about byte-pair encoding, and data.tokenizer is {bench.config.data.tokenizer}")
    ratios = []
    for run in finished_runs:
        try:
            found = run.log.branch_ratios(seed=run.seed)
        except ValueError as error:
            judge.invalid(f"the training is too short to compare its branches: {error}")
        ratios.append(found.gradients)
        where = bench.where(run) | {"n": found.steps}
        judge.info("seed_gradient_ratio", found.gradients.value, ci=found.gradients.ci, **where)
        judge.info("update_ratio", found.updates.value, ci=found.updates.ci, note="of ||dW|| / ||W||", **where)
    ratio = geometric_mean(ratios)
    # without bounds (a branch whose gradient is exactly 0) the point is judged, and the branches are asked below
    ci = ratio.ci if ratio.n_clusters else None
    judge("gradient_ratio", ratio.value, ci=ci, n=ratio.n, note="RWKV-6 over Mamba-2")
    judge.info("replicates_the_expected_range", float(replicates(ratio)), note=".2 to .5; 1 yes, 0 no")
    if is_alarming(ratio):
        for seed, ablation, where in request.getfixturevalue("ablations"):
            dead = dead_branches(ablation)
            note = f"state of no use to what follows: {', '.join(dead)}" if dead else "the state of each is heard"
            judge.holds("both_branches_live", not dead, seed=seed, step=where.get("step"), note=note)
