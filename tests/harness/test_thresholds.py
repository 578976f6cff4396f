"""The rule that turns a number into a status, and the loader that refuses a table that cannot be meant."""

import math
import tomllib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harness.checks import load_checks
from harness.records import Limits, Status
from harness.thresholds import THRESHOLDS_PATH, ThresholdError, judge_value, load_thresholds, margin

RATIO = Limits(pass_band=(0.3, 3.0), warn_band=(0.1, 10.0), source="s", calibrated=False)
GOODNESS = {Status.FAIL: 0, Status.WARN: 1, Status.PASS: 2}
finite = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("value", "ci", "status"),
    [
        (0.3, None, "PASS"),
        (3.0, None, "PASS"),
        (math.nextafter(0.3, 0), None, "WARN"),
        (0.1, None, "WARN"),
        (math.nextafter(0.1, 0), None, "FAIL"),
        (10.1, None, "FAIL"),
        (1.0, (0.3, 3.0), "PASS"),
        (1.0, (0.29, 3.0), "WARN"),
        (1.0, (0.01, 100.0), "WARN"),
        (0.05, (0.01, 0.09), "FAIL"),
        (0.05, (0.01, 0.1), "WARN"),
        (20.0, (10.0, 30.0), "WARN"),
        (20.0, (10.1, 30.0), "FAIL"),
        (math.nan, None, "FAIL"),
        (math.inf, None, "FAIL"),
        (1.0, (math.nan, 2.0), "FAIL"),
        (math.nan, (1.0, 2.0), "FAIL"),
    ],
)
def test_the_rule(value, ci, status):
    assert judge_value(RATIO, value, ci) == status


def test_an_infinite_value_fails_even_an_unbounded_band():
    anything = Limits(pass_band=(-math.inf, math.inf), warn_band=(-math.inf, math.inf), source="s", calibrated=False)
    assert judge_value(anything, math.inf) == Status.FAIL
    assert judge_value(anything, 1e300) == Status.PASS


@given(finite, finite, finite, st.floats(0, 5), st.booleans())
def test_more_of_a_good_thing_is_never_worse(value, step, pass_end, gap, higher):
    sign = 1 if higher else -1
    band = (lambda low: (low, math.inf)) if higher else (lambda high: (-math.inf, high))
    limits = Limits(pass_band=band(pass_end), warn_band=band(pass_end - sign * gap), source="s", calibrated=False)
    better = value + sign * abs(step)
    assert GOODNESS[judge_value(limits, better)] >= GOODNESS[judge_value(limits, value)]


@given(finite, st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_a_wider_interval_never_turns_doubt_into_a_verdict(value, left, right, more):
    narrow = judge_value(RATIO, value, (value - left, value + right))
    wide = judge_value(RATIO, value, (value - left - more, value + right + more))
    assert wide in (narrow, Status.WARN)


@given(st.floats(allow_nan=True, allow_infinity=True), finite, finite)
def test_what_is_not_finite_never_passes(value, low, high):
    assume(not math.isfinite(value) or low > high)
    if math.isfinite(value):
        with pytest.raises(ValueError, match="swapped"):
            judge_value(RATIO, value, (low, high))
    else:
        assert judge_value(RATIO, value, (min(low, high), max(low, high))) == Status.FAIL


@given(finite)
def test_the_margin_is_positive_exactly_inside_the_pass_band(value):
    distance = margin(RATIO, value)
    assert (distance >= 0) == (judge_value(RATIO, value) == Status.PASS)


def test_the_margin_is_that_of_the_worse_end():
    assert margin(RATIO, 1.0, (0.5, 2.0)) == pytest.approx(0.2)
    assert margin(RATIO, 0.05) == pytest.approx(-0.25)
    assert math.isnan(margin(RATIO, math.nan))


def test_only_the_end_that_can_be_missed_counts():
    share = Limits(pass_band=(0.9, 1.0), warn_band=(0.5, 1.0), source="s", calibrated=False)
    assert margin(share, 0.99, direction="higher") == pytest.approx(0.09)
    assert margin(share, 0.99, direction="band") == pytest.approx(0.01)
    assert margin(share, 1.5, direction="higher") == pytest.approx(-0.5), "beyond what is possible"
    assert margin(share, 0.91, direction="lower") == pytest.approx(0.09)
    assert margin(share, 0.1, direction="lower") == pytest.approx(-0.8)


GOOD = {
    "unit": '"1"',
    "direction": '"band"',
    "pass": "[1, 2]",
    "warn": "[0, inf]",
    "source": '"s"',
    "calibrated": "false",
}


def table(tmp_path, **changes):
    rows = {**GOOD, **changes}
    path = tmp_path / "thresholds.toml"
    path.write_text("[A.m]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items() if value is not None))
    return path


def test_a_good_table_loads(tmp_path):
    thresholds = load_thresholds(table(tmp_path, per_scale='{ "8M" = { pass = [1, 3], warn = [0, 4] } }'))
    limits = thresholds.find("A", "m")
    assert limits.at("3.5M").pass_band == (1, 2)
    assert limits.at("8M").warn_band == (0, 4)
    assert len(thresholds.sha256) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pass": "[1, inf]", "warn": "[0, 5]"}, "lies outside warn"),
        ({"pass": "[2, 1]"}, "no interval"),
        ({"pass": "[nan, 2]"}, "no interval"),
        ({"warn": "[0, nan]"}, "no interval"),
        ({"source": None}, r"\[A.m.source\] Field required"),
        ({"source": '""'}, "at least 1 character"),
        ({"warn": None}, r"\[A.m.warn\] Field required"),
        ({"calibrated": None}, r"\[A.m.calibrated\] Field required"),
        ({"direction": '"up"'}, "higher"),
        ({"direction": '"higher"'}, "share their upper end"),
        ({"direction": '"lower"'}, "share their lower end"),
        ({"rationale": '"x"'}, "Extra inputs are not permitted"),
        ({"per_scale": '{ "8M" = { pass = [-1, 3], warn = [0, 4] } }'}, "lies outside warn"),
        ({"unit": '"1'}, "not TOML"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, changes, message):
    with pytest.raises(ThresholdError, match=message):
        load_thresholds(table(tmp_path, **changes))


def test_a_metric_without_limits_names_its_neighbours(tmp_path):
    with pytest.raises(ThresholdError, match=r"no limits \[A.n\]; .*Known: m"):
        load_thresholds(table(tmp_path)).find("A", "n")


def test_the_projects_own_table_loads_and_belongs_to_its_checks():
    checks, thresholds = load_checks(), load_thresholds()
    assert set(thresholds.checks) <= set(checks)
    assert set(tomllib.loads(THRESHOLDS_PATH.read_text())) == set(thresholds.checks)
