"""PEER: the subject loses little, or nothing, against GPT2 of the same size on the same data."""

import pytest

pytestmark = pytest.mark.check("PEER")


def test_the_loss_is_close_to_that_of_gpt2(peer_runs, finished_runs, bench, judge):
    from harness.metrics.across_seeds import across_seeds
    from harness.metrics.intervals import bootstrap_ratio

    gaps = []
    for run, peer in zip(finished_runs, peer_runs, strict=True):
        gap = run.log.final_evaluation().minus(peer.log.final_evaluation())
        one = bootstrap_ratio(gap, seed=run.seed)
        note = f"{run.log.final_evaluation().value:.3f} against {peer.log.final_evaluation().value:.3f}"
        where = bench.where(run) | {"n": one.n, "n_clusters": one.n_clusters}
        judge.info("seed_loss_gap", one.value, ci=one.ci, unit="nats/token", null_value=0, note=note, **where)
        gaps.append(gap)
    mean = across_seeds(gaps, seed=bench.seeds[0])
    note = "one seed: its interval holds the spread of documents alone" if len(gaps) == 1 else ""
    judge("loss_gap", mean.value, ci=mean.ci, n=mean.n, n_clusters=mean.n_clusters, null_value=0, note=note)


def test_gpt2_is_as_large_as_the_subject(peer_runs, finished_runs, judge):
    from harness.soundness import count_parameters

    sizes = [count_parameters(runs[0].model()) for runs in (finished_runs, peer_runs)]
    judge("size_ratio", sizes[0] / sizes[1], note=f"{sizes[0]:,} parameters against {sizes[1]:,}")
