"""A stored measurement is what was measured, and is measured again when anything that decides it changes."""

import math
from dataclasses import dataclass

import pytest
from torch import nn

from harness.measurement import measure_or_load, weights_sha256
from harness.metrics.intervals import Interval
from harness.store import Store


@dataclass(frozen=True)
class Finding:
    by_layer: dict[int, Interval]
    worst: float
    names: tuple[str, ...]


FOUND = Finding({0: Interval(0.5, -math.inf, 1.0, 4, 2), 3: Interval(math.nan, 0.0, 0.0, 1, 1)}, math.inf, ("a", "b"))


@pytest.fixture
def model():
    return nn.Linear(3, 2)


@pytest.fixture
def counted():
    calls = []

    def measure():
        calls.append(1)
        return FOUND

    return measure, calls


def test_it_comes_back_as_it_was_without_being_measured_again(tmp_path, model, counted):
    measure, calls = counted
    first = measure_or_load(Store(tmp_path), {"measurement": "x"}, Finding, model, measure)
    again = measure_or_load(Store(tmp_path), {"measurement": "x"}, Finding, model, measure)
    assert len(calls) == 1
    for found in (first, again):
        assert found.by_layer[0] == FOUND.by_layer[0]
        assert math.isnan(found.by_layer[3].value)
        assert (found.worst, found.names) == (math.inf, ("a", "b"))


def test_other_weights_or_other_fields_are_measured_anew(tmp_path, model, counted):
    measure, calls = counted
    measure_or_load(Store(tmp_path), {"measurement": "x"}, Finding, model, measure)
    measure_or_load(Store(tmp_path), {"measurement": "y"}, Finding, model, measure)
    model.weight.data[0, 0] += 1e-7
    measure_or_load(Store(tmp_path), {"measurement": "x"}, Finding, model, measure)
    assert len(calls) == 3


def test_the_hash_sees_values_names_shapes_and_dtypes(model):
    base = weights_sha256(model)
    assert weights_sha256(model) == base
    assert weights_sha256(nn.Sequential(model)) != base
    assert weights_sha256(model.double()) != base


def test_what_cannot_be_measured_is_not_stored(tmp_path, model):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_or_load(Store(tmp_path), {"measurement": "x"}, Finding, model, fail)
    assert Store(tmp_path).paths() == []
