"""G2: a fresh model knows nothing, and knows that it knows nothing: its distribution is close to uniform."""

import pytest

pytestmark = pytest.mark.check("G2")

INIT_SEEDS = 5


def test_a_fresh_model_is_close_to_uniform(bench, judge):
    from harness.metrics.intervals import t_interval

    if bench.checkpoint is not None:
        judge.na("the subject is a checkpoint: there is no fresh model to look at")
    starts = [bench.fresh_start(seed) for seed in range(INIT_SEEDS)]
    hidden = [start.hidden_entropy_share for start in starts if start.hidden_entropy_share is not None]
    if hidden:
        # where the founding documents' band of 2 to 5 nats began; never judged
        judge.info("hidden_softmax_entropy", sum(hidden) / len(hidden), unit="ln D", n=len(hidden), step=0)
    for metric in ("entropy_share", "loss_ratio"):
        values = [getattr(start, metric) for start in starts]
        for seed, value in enumerate(values):
            judge(f"init_{metric}", value, case=f"init seed {seed}", seed=seed, n=starts[seed].windows, step=0)
        over_seeds = t_interval(values)
        judge(f"init_{metric}", over_seeds.value, case="all init seeds", seed=range(INIT_SEEDS), ci=over_seeds.ci,
              n=INIT_SEEDS, step=0)  # fmt: skip
