"""Records survive JSON exactly, non-finite numbers included."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.records import Limits, Record, Status, status_of, worst

numbers = st.floats(allow_nan=True, allow_infinity=True)


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@given(numbers, st.tuples(numbers, numbers), st.text(max_size=20))
def test_a_record_survives_json(value, ci, note):
    limits = Limits(pass_band=(0.0, math.inf), warn_band=(-math.inf, math.inf), source="s", calibrated=True)
    record = Record(check="A", metric="m", status=Status.WARN, value=value, ci=ci, note=note, threshold=limits)
    text = record.model_dump_json()
    # the JSON standard knows neither NaN nor Infinity
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) is not None
    again = Record.model_validate_json(text)
    assert same(again.value, value)
    assert all(same(x, y) for x, y in zip(again.ci, ci, strict=True))
    assert (again.note, again.threshold) == (note, limits)


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError):
        Record(check="A", metric="m", status=Status.PASS, vaule=1.0)


def test_no_record_is_missing_evidence():
    assert worst([]) == Status.MISSING
    described = Record(check="A", metric="m", status=Status.NA, info=True)
    assert status_of([described]) == Status.MISSING


@given(st.lists(st.sampled_from(Status), min_size=1))
def test_only_passes_and_absent_verdicts_make_a_pass(statuses):
    if worst(statuses) == Status.PASS:
        assert set(statuses) <= {Status.PASS, Status.UNSUPPORTED, Status.NA}
        assert Status.PASS in statuses
    # more evidence of the same kind never improves a status
    assert worst([*statuses, Status.FAIL]) == Status.FAIL
