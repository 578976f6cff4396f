"""RESOURCE: memory and speed of the scale were predicted from smaller sizes before they were measured."""

import pytest

pytestmark = pytest.mark.check("RESOURCE")


@pytest.fixture
def findings(bench, request, judge):
    """What was predicted, what was measured, and what is predicted next."""
    from fixtures.resources import find
    from fixtures.subjects import SubjectError
    from harness.flops import FlopsError
    from harness.graduation.predictions import PredictionError
    from harness.resource import BusyError

    try:
        # as an argument it would be set up before this check has waited for the trainings
        processes = request.getfixturevalue("resource_processes")
        return bench.once(("resources",), lambda: find(bench, processes))
    except (SubjectError, FlopsError) as error:
        judge.missing(str(error))
    except (BusyError, PredictionError) as error:
        judge.invalid(str(error))


def test_memory_and_speed_are_as_predicted(findings, judge):
    from harness.metrics.resource import prediction_error

    predicted, resources = findings.predicted, findings.measured.resources
    memory, speed = predicted.memory, predicted.speed
    error = prediction_error(resources.peak_bytes, memory.value, resources.speed, speed.value)
    sizes = ", ".join(rung.scale for rung in findings.ladder)
    judge("error", error, null_value=0, n=len(findings.ladder), note=f"from {sizes}; {memory.short}; {speed.short}")
    judge.info("predicted_memory", memory.value, ci=(memory.low, memory.high), unit="bytes", note=predicted.terms)
    judge.info("memory", resources.peak_bytes, unit="bytes")
    judge.info("predicted_speed", speed.value, ci=(speed.low, speed.high), unit="tokens/s")
    windows = resources.tokens_per_s
    note = (
        f"median of {len(windows)} windows of {resources.steps_a_window} {resources.execution} updates; "
        f"the interval is their range"
    )
    judge.info("speed", resources.speed, ci=(min(windows), max(windows)), n=len(windows), unit="tokens/s", note=note)


def test_the_speed_is_steady(findings, judge):
    for size in (*findings.ladder, findings.measured):
        resources = size.resources
        judge("window_spread", resources.spread, case=size.scale, n=len(resources.tokens_per_s))
        judge.info("cpu_share", resources.cpu_share, case=size.scale)
        judge.info("yardstick", resources.yardstick, case=size.scale, unit="FLOP/s")


def test_the_next_scale_is_predicted(findings, judge):
    upcoming = findings.next
    if upcoming is None:
        judge("next_predictions", 1, note="this is the largest scale: none is due")
        return
    due = (upcoming.memory, upcoming.speed)
    where = f"{upcoming.scale}, with the batch, length and vocabulary of this scale"
    judge("next_predictions", len(due) / 2, case=upcoming.scale, n=len(due), note="; ".join(p.short for p in due))
    for metric, prediction, unit in zip(("next_memory", "next_speed"), due, ("bytes", "tokens/s"), strict=True):
        judge.info(metric, prediction.value, ci=(prediction.low, prediction.high), unit=unit, case=where)
