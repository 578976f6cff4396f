"""SB3: how much comes back out of a state of so many bytes."""

import pytest

pytestmark = pytest.mark.check("SB3")


def test_recall_by_bytes_of_state(bench, judge, publish_figure):
    from fixtures.state_benchmarks import learned, peer_learned, recalls_of, unproven
    from harness.figures import LineFigure
    from harness.labelled import TaskError
    from harness.metrics.recall_efficiency import most_pairs

    try:
        runs = learned(bench, "recall")
        reason = unproven(bench, "recall", runs)
        peer = peer_learned(bench, "recall")
    except TaskError as error:
        judge.missing(str(error))
    if reason:
        judge.invalid(reason)
    lines = {}
    for name, run in [*((bench.subject.name, run) for run in runs), (peer.subject.name, peer)]:
        found = list(recalls_of(run).values())
        for recall in found:
            case, efficiency = f"{name}, {recall.pairs} pairs", recall.per_state_bit
            at = {"case": case, "seed": run.seed, "n": recall.accuracy.n}
            judge.info("accuracy", recall.accuracy.value, ci=recall.accuracy.ci, null_value=1 / recall.values, **at)
            judge.info(
                "state_bytes", recall.state_bytes, unit="bytes", note="LONG states, as the model returns them", **at
            )
            if run is peer:
                judge.info("bits_per_state_bit", efficiency.value, ci=efficiency.ci, null_value=0, **at)
            else:
                judge("bits_per_state_bit", efficiency.value, ci=efficiency.ci, null_value=0, **at)
        if run is peer:
            judge.info("recalled_pairs", most_pairs(found), unit="pairs", case=name, seed=run.seed)
        else:
            judge("recalled_pairs", most_pairs(found), case=name, seed=run.seed, n=len(found))
        lines[f"{name}, seed {run.seed}"] = [(recall.pairs, recall.per_state_bit.value) for recall in found]
    figure = LineFigure("Bits recalled of each bit of state", "pairs to recall", "bits a bit", {"": lines}, x_log=True)
    publish_figure("recall-by-state", figure)
