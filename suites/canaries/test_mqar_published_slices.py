"""MQAR: recall of mixers alone against the bytes of their states, beside what is published."""

import pytest

pytestmark = pytest.mark.check("MQAR")


def test_recall_against_bytes_of_state(bench, judge, publish_figure):
    from fixtures.mqar_study import mqar_figure, published_beside, setting_of, stacks
    from harness.labelled import TaskError
    from harness.metrics.recall_efficiency import smallest_state

    setting = setting_of(bench)
    try:
        found = stacks(bench)
    except TaskError as error:
        judge.missing(str(error))
    for stack in found:
        case, easiest = (
            f"{stack.name}, {stack.run.subject.scale}, {stack.state_bytes} bytes",
            next(iter(stack.recalls.values())),
        )
        at = {"case": case, "seed": stack.run.seed}
        accuracy = easiest.accuracy
        judge("easiest_accuracy", accuracy.value, ci=accuracy.ci, n=accuracy.n, null_value=1 / easiest.values,
              note=setting.says, **at)  # fmt: skip
        mean = stack.mean
        judge.info("mean_accuracy", mean.value, ci=mean.ci, n=mean.n,
                   note=f"{len(stack.recalls)} sets; learning rate {stack.run.training.config.lr:g}", **at)  # fmt: skip
        for name, recall in stack.recalls.items():
            efficiency = recall.per_state_bit
            judge.info("bits_per_state_bit", efficiency.value, ci=efficiency.ci, n=recall.accuracy.n,
                       case=f"{case}, {name}", seed=stack.run.seed)  # fmt: skip
        point = published_beside(stack) if setting.published else None
        if point is not None:
            judge("over_published", mean.value - point.accuracy, null_value=0, n=mean.n,
                  note=f"published {point.accuracy:g}, the best of its bytes on the test sets", **at)  # fmt: skip
    for model in dict.fromkeys(stack.name for stack in found):
        for name in found[0].recalls:
            smallest = smallest_state([stack.recalls[name] for stack in found if stack.name == model])
            if smallest is not None:
                judge.info("smallest_state", smallest.state_bytes, unit="bytes", case=f"{model}, {name}")
    publish_figure("mqar-by-state-bytes", mqar_figure(found, setting))
