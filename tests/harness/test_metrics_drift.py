"""The drift detector beyond its known answers: calibration for any distribution, coverage, broken streams."""

import math
import time

import numpy as np
import pytest
from registered_answers import fails, registered_in
from scipy.special import ndtr
from scipy.stats import binom

from harness.metrics import drift, known_answers_drift
from harness.metrics.drift import Detector, area_under_roc, calibrate, cusum, read_drift
from harness.metrics.known_answers_drift import alarm_within, run_length

KNOWN_ANSWERS = registered_in(known_answers_drift)


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_they_are_fast():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1.5


true_cusum = drift.cusum


def binomial_chance(_, alarms, dialogues):
    return float(binom.sf(alarms - 1, dialogues, drift.FALSE_ALARMS))


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("cusum", lambda drop, slack=0.5: true_cusum(drop, 0.0)),
        ("cusum", lambda drop, slack=0.5: np.cumsum(drop - slack, 1)),
        ("cusum", lambda drop, slack=0.5: true_cusum(-drop, slack)),
        ("first_above", lambda sums, h: np.where((sums > h).any(1), (sums > h).argmax(1), np.inf)),
        ("Detector", type("Detector", (Detector,), {"chance": binomial_chance})),
        ("area_under_roc", lambda p, n: drift.wilson(float(sum(x > y for x in p for y in n)), len(p) * len(n))),
    ],
    ids=["no slack", "may go below 0", "the wrong side", "from turn 0", "as if the rate were known", "ties lose"],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, name, broken):
    monkeypatch.setattr(drift, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


def test_the_sum_by_hand():
    assert cusum([[1.0, 1.0, -3.0, 2.0]]).tolist() == [[0.5, 1.0, 0.0, 1.5]]
    assert np.isnan(cusum([[1.0, math.nan, 1.0]])[0, 1:]).all()


def test_exact_run_lengths_agree_with_published_ones():
    # Montgomery, "Introduction to statistical quality control": k = 1/2, two-sided; without a shift half of one-sided
    for threshold, none, one in ((4.0, 168.0, 8.38), (5.0, 465.0, 10.4)):
        assert run_length(threshold, 0.0) / 2 == pytest.approx(none, rel=0.01)
        assert run_length(threshold, 1.0) == pytest.approx(one, rel=0.005)


@pytest.mark.parametrize("kind", ["normal", "skewed", "a level a dialogue", "trailing"])
@pytest.mark.parametrize("dialogues", [19, 60])
def test_another_dialogue_without_drift_is_rarely_an_alarm(kind, dialogues):
    random = np.random.default_rng(0)

    def streams(n):
        z = random.standard_normal((n, 20))
        if kind == "skewed":
            return -np.exp(z)
        if kind == "a level a dialogue":
            return z + random.standard_normal((n, 1))
        return z - 0.1 * np.arange(20) if kind == "trailing" else z

    rates = [(calibrate(streams(dialogues)).alarms(streams(100)) <= 20).mean() for _ in range(200)]
    # at most .05 in expectation; the mean of 200 calibrations is known to .004
    assert np.mean(rates) <= 0.065


@pytest.mark.parametrize("sizes", [(19, 12), (199, 200)], ids=str)
def test_dialogues_like_those_that_calibrated_are_rarely_called_unlike(sizes):
    random = np.random.default_rng(4)
    calibrating, measured = sizes

    def chance_of(shift):
        detector = calibrate(random.standard_normal((calibrating, 20)))
        steady = random.standard_normal((measured, 20)) - shift
        return read_drift(detector, steady, steady, change=4).chance

    # .005 is asked for: 1 of 200 calibrations, 5 would be seen once in 300 times
    assert sum(chance_of(0.0) < drift.UNLIKE for _ in range(200)) <= 5
    # every turn a deviation lower: most of them ring
    assert np.mean([chance_of(1.0) < drift.UNLIKE for _ in range(50)]) > 0.9


def test_too_few_dialogues_or_turns_are_refused():
    random = np.random.default_rng(1)
    with pytest.raises(ValueError, match="give 19"):
        calibrate(random.standard_normal((18, 20)))
    assert calibrate(random.standard_normal((19, 20))).threshold > 0
    with pytest.raises(ValueError, match="at least 20 turns"):
        calibrate(random.standard_normal((50, 19)))
    for streams in (np.zeros((50, 20)), np.full((50, 20), math.nan)):
        with pytest.raises(ValueError, match="do not vary"):
            calibrate(streams)


def test_alarms_before_the_change_are_no_detections():
    z = np.zeros((2, 8))
    z[0, 0] = -6
    z[1, 4:] = -6
    found = read_drift(Detector(0.0, 1.0, 4.0), np.zeros((5, 8)), z, change=4, turns=8)
    assert (found.early, found.detected.n, found.detected.value, found.mean_delay) == (1, 1, 1.0, 1.0)
    all_early = read_drift(Detector(0.0, 1.0, 4.0), np.zeros((5, 8)), z[:1], change=4, turns=8)
    assert math.isnan(all_early.detected.value)
    assert math.isnan(all_early.median_delay)


def test_what_is_missed_is_late_and_not_left_out():
    z = np.zeros((4, 8))
    z[0, 4:] = -6
    found = read_drift(Detector(0.0, 1.0, 4.0), np.zeros((5, 8)), z, change=4, turns=8)
    assert (found.detected.value, found.mean_delay, found.median_delay) == (0.25, 1.0, math.inf)


def test_a_broken_model_has_no_good_number():
    bad = np.zeros((4, 8))
    bad[1, 3] = math.nan
    for steady, drifting in ((bad, np.zeros((4, 8))), (np.zeros((4, 8)), bad)):
        found = read_drift(Detector(0.0, 1.0, 4.0), steady, drifting, change=4, turns=8)
        assert all(math.isnan(each.value) for each in (found.false_alarms, found.detected, found.auc))


def test_injected_drift_is_found_at_the_delay_of_normal_streams():
    random = np.random.default_rng(2)
    detector = calibrate(random.standard_normal((4000, 20)))
    drifting = random.standard_normal((2000, 80))
    drifting[:, 20:] -= 1
    found = read_drift(detector, random.standard_normal((2000, 80)), drifting, change=20)
    assert found.false_alarms.low <= alarm_within(detector.threshold, 20) <= found.false_alarms.high
    # the sum is rarely at 0 when the change comes, so the alarm is sooner than from a start at 0
    assert run_length(detector.threshold, 1.0) - 1.5 < found.mean_delay < run_length(detector.threshold, 1.0)
    assert found.auc.low > 0.95


def test_areas_agree_with_counting_pairs():
    random = np.random.default_rng(3)
    p, n = random.integers(0, 6, 30), random.integers(0, 5, 20)
    counted = np.mean([(x > y) + 0.5 * (x == y) for x in p for y in n])
    assert area_under_roc(p, n).value == pytest.approx(counted, abs=1e-12)
    assert area_under_roc(n, p).value == pytest.approx(1 - counted, abs=1e-12)
    assert math.isnan(area_under_roc([math.nan], [1.0]).value)


@pytest.mark.parametrize("size", [20, 200])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_areas_are_covered(size, shift):
    random = np.random.default_rng(4)
    truth = ndtr(shift / math.sqrt(2))
    found = [
        area_under_roc(random.standard_normal(size) + shift, random.standard_normal(size)) for _ in range(500)
    ]  # fmt: skip
    assert np.mean([each.low > truth for each in found]) <= 0.08
    assert np.mean([each.high < truth for each in found]) <= 0.08


def test_the_bounds_of_an_area_mirror_each_other():
    high, low = area_under_roc([2, 3], [0, 1]), area_under_roc([0, 1], [2, 3])
    assert (high.value, high.high, low.value, low.low) == (1.0, 1.0, 0.0, 0.0)
    assert high.low == pytest.approx(1 - low.high, abs=1e-9)
    assert 0 < high.low < 0.9
