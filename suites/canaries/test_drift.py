"""DRIFT: when a user contradicts what was said before, what the model expects of the user changes, and is seen to."""

import pytest

pytestmark = pytest.mark.check("DRIFT")

DIALOGUES = {("3.5M", "cpu"): (19, 12)}
"""Dialogues that calibrate and that are measured, by scale and device; what follows where nothing is said."""
ALL_DIALOGUES = (199, 200)


@pytest.fixture
def drifts(bench, taught, words):
    """``(what the detector does, where)`` of everything taught."""
    from fixtures.dialogues.persona import CHANGE, make_personas
    from harness.persona_drift import PersonaDrift, read_persona_drift

    calibrating, measured = DIALOGUES.get((bench.subject.scale, bench.device), ALL_DIALOGUES)
    return [
        (
            bench.measured(
                f"persona drift, {calibrating} and {measured} dialogues", PersonaDrift, model,
                lambda model=model: read_persona_drift(
                    model, make_personas(words, count=calibrating),
                    make_personas(words, count=measured, skip=calibrating), words.encode,
                    change=CHANGE, device=bench.device,
                ),
            ),
            where | {"n": measured},
        )
        for _, model, where in taught
    ]  # fmt: skip


def test_a_change_is_heard(drifts, judge, publish_figure):
    from harness.figures import LineFigure

    for drift, where in drifts:
        judge("heard", drift.heard, null_value=0, note="change of z in the changed turns", **where)
        judge.info("margin", drift.margin, unit="nats", null_value=0, note="mean z of a steady user", **where)
        lines = {
            name: list(enumerate(by_turn, 1))
            for name, by_turn in (("steady", drift.steady_by_turn), ("changed", drift.changed_by_turn))
        }
        title = f"What is expected of the user, seed {where['seed']}"
        publish_figure(f"drift-seed-{where['seed']}", LineFigure(title, "turn", "z (nats)", {"": lines}))


def test_drift_is_seen_where_there_is_any(drifts, judge):
    from harness.metrics.drift import FALSE_ALARMS, UNLIKE

    for drift, where in drifts:
        found, alarms = drift.reading, drift.reading.false_alarms
        judge.info("false_alarms", alarms.value, ci=alarms.ci, null_value=FALSE_ALARMS,
                   note=f"calibrated on {drift.calibrated} other dialogues", **where)  # fmt: skip
        if found.chance < UNLIKE:
            judge.invalid(
                f"{alarms.value:.0%} of {alarms.n} dialogues without drift raise an alarm; that many have a chance of "
                f"{found.chance:.2g} where they are like the {drift.calibrated} that calibrated the detector to "
                f"{FALSE_ALARMS:.0%}, and below {UNLIKE:g} they are taken to be unlike them"
            )
        judge.info("detected", found.detected.value, ci=found.detected.ci, null_value=alarms.value,
                   note=f"{found.early} rang before the change", **where)  # fmt: skip
        judge.info("median_delay", found.median_delay, unit="turns", note="infinite: half are missed", **where)
        judge("auc", found.auc.value, ci=found.auc.ci, null_value=0.5, **where)
