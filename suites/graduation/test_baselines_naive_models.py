"""BASELINES: the trained model beats the naive models that its scale must beat."""

import pytest

pytestmark = pytest.mark.check("BASELINES")


def test_the_trained_model_beats_the_naive_models(finished_runs, bench, judge):
    from harness.naive_margins import naive_margins

    for run in finished_runs:
        found = naive_margins(run.log.final_evaluation(), bench.naive, seed=run.seed)
        where = bench.where(run) | {"n": found.loss.n, "n_clusters": found.loss.n_clusters}
        judge.info("val_loss", found.loss.value, ci=found.loss.ci, unit="nats/token", **where)
        for name, nats in bench.naive_nats.items():
            judge.info("naive_loss", nats, unit="nats/token", case=name, **where)
        judge("unigram_margin", found.unigram.value, ci=found.unigram.ci, null_value=0, **where)
        bigram = found.bigram
        if judge.demands("bigram_margin"):
            judge("bigram_margin", bigram.value, ci=bigram.ci, null_value=0, **where)
        else:
            judge.info("bigram_margin", bigram.value, ci=bigram.ci, null_value=0, unit="nats/token", **where)
