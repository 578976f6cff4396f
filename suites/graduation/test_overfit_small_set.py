"""OVERFIT: a small set of random sequences can be learnt by heart."""

import pytest

pytestmark = pytest.mark.check("OVERFIT")


def test_a_small_set_is_learnt_by_heart(bench, judge, publish_figure):
    from fixtures.small_set import CONTROL, memorised, memorised_by_control
    from harness.figures import LineFigure
    from harness.metrics.memorising import memory_floor, small_set

    seed = bench.seeds[0]
    control = memorised_by_control(bench, seed)
    if not control.reached:
        judge.invalid(
            f"the control, {CONTROL} of this size, reached {control.loss:.3f} nats and {control.accuracy:.1%} in "
            f"{control.steps} steps: a set that it cannot learn says nothing of another model"
        )
    found = memorised(bench, seed)
    inputs, targets = small_set(bench.config.data.vocab_size, seed)
    floors = [float(memory_floor(inputs, targets, reach).mean()) for reach in range(3)]
    note = f"after {found.steps} steps; {CONTROL} {control.loss:.3f} after {control.steps}"
    where = {"seed": seed, "step": found.steps, "n": len(inputs), "split": "made up"}
    judge("final_loss", found.loss, null_value=floors[1], note=f"{note}; null: reads the last token only", **where)
    judge("accuracy", found.accuracy, note=note, **where)
    for reach, floor in enumerate(floors):
        judge.info("floor", floor, unit="nats/token", case=f"reads {reach} tokens", seed=seed, split="made up")

    lines = {bench.subject.name: found.losses, f"{CONTROL}, control": control.losses}
    points = {name: [(step, loss) for step, loss in enumerate(losses)] for name, losses in lines.items()}
    publish_figure("small-set", LineFigure("A small set learnt by heart", "updates", "nats a token", {"": points}))
