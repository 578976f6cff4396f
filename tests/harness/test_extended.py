"""EXTENDED reads off a model what the other checks read off it, and judges it by their limits."""

from dataclasses import replace

import numpy as np
import pytest

from harness.collapse import spreads
from harness.data import Split, Windows
from harness.extended import log_readings, state_readings, worsening
from harness.state_probe import sample_states
from harness.state_size import measure_magnitudes
from harness.thresholds import load_thresholds
from models import get_model

V = 512


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(0).integers(0, V, 4000).astype(np.uint16)
    split = Split(tokens, np.array([0, len(tokens)]), ("all",), 0)
    return Windows(split, 64, np.arange(16) * 100, np.arange(16) // 2)


@pytest.fixture(scope="module")
def readings(windows):
    model = get_model("GF-MH", "3.5M", V).eval()
    sample = sample_states(model, windows, device="cpu")
    sizes = measure_magnitudes(model, windows, device="cpu")
    return state_readings(sample, spreads(sample, 0), sizes, 0).found


def limits_of(check, metric):
    return load_thresholds().find(check, metric).at("8M")


def test_every_reading_has_a_limit_and_a_place_of_its_own(readings):
    assert len({reading.name for reading in readings}) == len(readings)
    for reading in readings:
        limits_of(reading.check, reading.metric)
    found = {(reading.check, reading.metric) for reading in readings}
    assert {("G3.5", "state_motion"), ("G3.5", "gate_saturation"), ("D2", "directions"), ("S1", "write_ratio")} <= found


def test_a_model_does_not_worsen_against_itself(readings):
    found = worsening(readings, readings, limits_of)
    assert (found.to_warn, found.to_fail, found.compared) == ([], [], len(readings))


@pytest.mark.parametrize(
    ("metric", "value"), [("state_motion", 0.5), ("directions", 1.0), ("zero_heads", 1), ("write_ratio", 1e6)]
)
def test_one_broken_reading_is_found_and_named(readings, metric, value):
    at = next(i for i, reading in enumerate(readings) if reading.metric == metric)
    after = [replace(r, value=value, ci=None) if i == at else r for i, r in enumerate(readings)]
    found = worsening(readings, after, limits_of)
    assert len(found.to_fail) == 1
    assert readings[at].name in found.to_fail[0]


def test_a_stopping_criterion_that_is_newly_met_counts():
    before, alert, stop = (log_readings([], {"spike": (level, "")}) for level in (0, 1, 2))
    assert len(worsening(before, alert, limits_of).to_warn) == 1
    assert len(worsening(before, stop, limits_of).to_fail) == 1
    assert not worsening(stop, stop, limits_of).to_fail
