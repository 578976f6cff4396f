"""G3: training works on real text: the loss falls, validation beats the unigram model by using the context."""

import pytest

pytestmark = pytest.mark.check("G3")


@pytest.fixture
def finished(runs, judge):
    """The runs that reached their last step; each other one is a FAIL of this check."""
    return [
        run
        for run in runs
        if judge.holds("training_finished", run.outcome.status == "finished", seed=run.seed, note=run.outcome.reason)
        == "PASS"
    ]


def test_training_loss_falls(finished, bench, judge):
    from harness.metrics.trend import UnderpoweredError

    for run in finished:
        try:
            trend = run.log.loss_trend()
        except UnderpoweredError as error:
            judge.invalid(str(error))
        where = bench.where(run) | {"n": trend.blocks}
        judge("trend_p", trend.p_value, note=f"blocks of {trend.block_len} steps, tau {trend.tau:.1f}", **where)
        judge("trend_slope", trend.slope, ci=trend.slope_ci, **where)


def test_validation_beats_the_unigram_model(finished, bench, judge, publish_items):
    for run in finished:
        final = bench.final_loss(run)
        documents = run.log.final_documents()
        publish_items("val_loss", documents, seed=run.seed, unit="nats/token", direction="lower")
        where = bench.where(run) | {"n": final.loss.n, "n_clusters": final.loss.n_clusters}
        naive = ", ".join(f"{name} {nats:.3f}" for name, nats in final.naive.items())
        judge.info("val_loss", final.loss.value, ci=final.loss.ci, unit="nats/token", note=naive, **where)
        judge("unigram_margin", final.unigram_margin.value, ci=final.unigram_margin.ci, **where)
        judge.info("bigram_margin", final.bigram_margin.value, ci=final.bigram_margin.ci, unit="nats/token", **where)
        judge("context_gain", final.context_gain.value, ci=final.context_gain.ci, **where)


def test_shuffled_targets_teach_nothing_beyond_the_unigram_model(bench, judge):
    for seed in bench.seeds:
        control = bench.shuffled_control(seed)
        note = f"unigram {control.unigram_nats:.3f} nats, after {control.steps} steps"
        if control.margin.high < 0:
            judge.invalid(
                f"trained on targets that have nothing to do with the context, the model reached "
                f"{control.loss.value:.3f} nats, better than the unigram model's {control.unigram_nats:.3f}: the data "
                f"leak, so no loss on them means anything"
            )
        judge.holds("shuffled_control", True, value=control.loss.value, unit="nats/token", seed=seed, note=note)


def test_gradients_stay_in_range(finished, bench, judge):
    for run in finished:
        summary = run.log.gradient_summary()
        where = bench.where(run) | {"n": run.log.gradient_steps}
        judge("grad_norm_median", summary.median, **where)
        judge("grad_norm_p99_over_median", summary.p99_over_median, **where)
        judge.info("grad_clip_fraction", summary.clip_fraction, **where)
