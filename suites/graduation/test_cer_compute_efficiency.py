"""CER: the subject needs no more training compute than GPT2 of the same size to reach the same loss."""

import pytest

pytestmark = pytest.mark.check("CER")


@pytest.fixture
def operations(bench, judge):
    """``operations(run)``: what its model computes for a token, at the length it was trained on."""
    from harness.flops import FlopsError, count_flops

    def count(run):
        try:
            return count_flops(bench.model_of(run), 1, run.config.data.seq_len)
        except FlopsError as error:
            judge.missing(str(error))

    return lambda run: bench.once(("flops", run.directory), lambda: count(run))


@pytest.fixture
def curves(peer_runs, finished_runs, judge):
    """``curves(cost of a step of a run)``: learning curves of the reference and of the subject, one a seed."""
    from harness.learning_curve import learning_curve

    def of(cost_per_step):
        try:
            return [
                [learning_curve(run.log, cost_per_step(run)) for run in runs] for runs in (peer_runs, finished_runs)
            ]
        except ValueError as error:
            judge.invalid(str(error))

    return of


def test_compute_to_reach_a_loss(curves, operations, finished_runs, peer_runs, bench, judge, publish_figure):
    from fixtures.training import clock
    from harness.learning_curve import curves_figure, flops_per_step
    from harness.metrics.efficiency import NoCommonRangeError, common_targets, compute_efficiency

    for run in (finished_runs[0], peer_runs[0]):
        counted = operations(run)
        parts = ", ".join(f"{name} {count:.3g}" for name, count in counted.by_operation.items())
        judge.info(
            "training_flops_per_token", counted.training, unit="FLOP/token", case=run.subject.name,
            note=f"forward: {parts}",
        )  # fmt: skip
    reference, subject = curves(lambda run: flops_per_step(run.log, operations(run).training))
    publish_figure(
        "learning-curves", curves_figure({peer_runs[0].subject.name: reference, bench.subject.name: subject})
    )
    try:
        targets = common_targets([*reference, *subject])
    except NoCommonRangeError as error:
        judge.invalid(str(error))
    seconds_per_step, counted_seconds = clock([*peer_runs, *finished_runs])
    timed = curves(seconds_per_step)
    note = f"seconds on this machine ({bench.device}), {counted_seconds}; shown only"
    for loss in targets:
        case = f"to reach {loss:.3f} nats"
        found, wall = compute_efficiency(reference, subject, loss), compute_efficiency(*timed, loss)
        judge("cer", found.value, ci=found.ci, n=found.n, null_value=1, case=case)
        judge.info("cer_wall", wall.value, ci=wall.ci, n=wall.n, null_value=1, case=case, note=note)
