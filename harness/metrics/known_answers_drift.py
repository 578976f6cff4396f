"""Known answers of the drift detector: normal streams, whose run lengths are exact."""

import math

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import drift
from harness.metrics.expect import expect, expect_between

CELLS = 400


def transition(threshold: float, shift: float) -> NDArray[np.float64]:
    """How the sum of normal drops with mean ``shift`` moves between cells of [0, threshold]; row sums miss the alarms.

    Source  Brook & Evans, Biometrika 59 (1972) 539: the sum as a Markov chain.
    """
    from scipy.special import ndtr

    width = threshold / (CELLS - 0.5)
    # the cell of 0 is half as wide: everything below it is set to 0
    centres = width * np.arange(CELLS)
    edges = centres[None, :] - centres[:, None] + drift.SLACK - shift
    upper, lower = ndtr(edges + width / 2), ndtr(edges - width / 2)
    lower[:, 0] = 0
    return np.asarray(upper - lower)


def run_length(threshold: float, shift: float) -> float:
    """Mean turns to the first alarm, from a sum of 0."""
    chain = transition(threshold, shift)
    return float(np.linalg.solve(np.eye(CELLS) - chain, np.ones(CELLS))[0])


def alarm_within(threshold: float, turns: int) -> float:
    """Probability of an alarm within so many turns without a shift."""
    return 1 - float(np.linalg.matrix_power(transition(threshold, 0.0), turns)[0].sum())


@known_answer("DRIFT")
def normal_streams_have_their_run_lengths() -> None:
    """Alarms within 20 turns 14.1 and 4.7 %, and 6.4 and 8.4 turns to see a shift of 1, at thresholds of 3 and 4."""
    streams = np.random.default_rng(31).standard_normal((10_000, 60))
    for threshold, alarms, delay in ((3.0, 0.141, 6.40), (4.0, 0.047, 8.38)):
        expect("exact share of alarms", alarm_within(threshold, 20), alarms, 5e-4)
        expect("exact delay", run_length(threshold, 1.0), delay, 0.01)
        detector = drift.Detector(0.0, 1.0, threshold)
        # six standard errors of 10,000 streams
        expect("share of alarms", float((detector.alarms(streams) <= 20).mean()), alarms, 6 * math.sqrt(alarms / 1e4))
        expect("delay", float(detector.alarms(streams - 1).mean()), delay, 6 * 4.5 / 100)
    expect("share of alarms when it gets better (negative control)",
           float((drift.Detector(0.0, 1.0, 3.0).alarms(streams + 1) <= 20).mean()), 0.0, 0.01)  # fmt: skip


@known_answer("DRIFT")
def the_threshold_is_set_by_streams_without_drift() -> None:
    """A threshold from 400 streams of any scale raises 5 % of alarms on others; skew needs a higher one."""
    random = np.random.default_rng(32)
    found = drift.calibrate(5 + 3 * random.standard_normal((2000, 20)))
    expect("threshold of normal streams", found.threshold, 3.93, 0.25)
    expect_between("its exact share of alarms", alarm_within(found.threshold, 20), 0.035, 0.065)
    fresh = float((found.alarms(5 + 3 * random.standard_normal((4000, 20))) <= 20).mean())
    expect_between("alarms on fresh streams", fresh, 0.03, 0.07)
    skewed = -random.exponential(size=(2000, 20))
    # negative control: the threshold of normal streams is too low for skewed ones
    normal = drift.Detector(-1.0, 1.0, found.threshold)
    expect_between("alarms on skewed streams, wrong threshold", float((normal.alarms(skewed) <= 20).mean()), 0.08, 1)
    expect_between("alarms on skewed streams, their own",
                   float((drift.calibrate(skewed).alarms(-random.exponential(size=(4000, 20))) <= 20).mean()),
                   0.03, 0.07)  # fmt: skip


@known_answer("DRIFT")
def delays_and_areas_are_counted() -> None:
    """A stream that breaks at turn 4 by two deviations is seen at the third changed turn; areas by hand."""
    steady, broken = np.zeros((3, 10)), np.zeros((3, 10))
    broken[:2, 4:] = -2
    found = drift.read_drift(drift.Detector(0.0, 1.0, 4.0), steady, broken, change=4, turns=10)
    expect("mean delay of the two seen", found.mean_delay, 3.0)
    expect("median delay", found.median_delay, 3.0)
    expect("share seen", found.detected.value, 2 / 3, 1e-12)
    expect("false alarms", found.false_alarms.value, 0.0)
    expect("area: two above, one level", found.auc.value, (2 + 0.5) / 3, 1e-12)
    expect("area of the same scores (negative control)", drift.area_under_roc([1, 2, 3], [1, 2, 3]).value, 0.5, 1e-12)
    expect_between("low end of an area of 1", drift.area_under_roc(np.ones(200), np.zeros(200)).low, 0.98, 0.999)
    lost = drift.read_drift(drift.Detector(0.0, 1.0, 4.0), steady, steady + math.nan, change=4, turns=10)
    expect("area of a broken model (negative control)", lost.auc.value, math.nan)


@known_answer("DRIFT")
def a_calibration_is_one_draw_of_many() -> None:
    """Two false alarms of 12 after 19 dialogues: 14 % by counting orders, not the 12 % of a known rate of 5 %."""
    detector = drift.Detector(0.0, 1.0, 4.0, calibrated=19, above=0)
    # the largest of 31 is one of the 19; then the second, third largest as well
    expect("at least one of 12", detector.chance(1, 12), 12 / 31, 1e-12)
    expect("at least two of 12", detector.chance(2, 12), 12 / 31 * 11 / 30, 1e-12)
    expect("none or more", detector.chance(0, 12), 1.0, 1e-12)
    expect("a tenth of very many calibrated to 5 %",
           drift.Detector(0.0, 1.0, 4.0, calibrated=199_999, above=9_999).chance(20, 200), 0.0027, 1e-4)  # fmt: skip
    expect("without a calibration (negative control)", drift.Detector(0.0, 1.0, 4.0).chance(1, 12), math.nan)
