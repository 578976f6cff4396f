"""Does a persona drift? A cumulative sum over turns of how much less likely what fits it has become."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, Interval, wilson

FloatArray = NDArray[np.float64]

SLACK = 0.5
"""Standard deviations a turn that the sum forgives: half of the shift it is tuned to find, one deviation."""

FALSE_ALARMS = 0.05
"""Of dialogues that do not drift, at most this share may raise an alarm within ``TURNS``."""

TURNS = 20

UNLIKE = 0.005
"""Dialogues without drift raise so many alarms so rarely that they are not like those that calibrated the detector."""


def cusum(drop_nT: ArrayLike, slack: float = SLACK) -> FloatArray:
    """One-sided cumulative sum ``[n, T]`` of standardised drops: ``S_t = max(0, S_{t-1} + drop_t - slack)``, S_0 = 0.

    Source  Page, Biometrika 41 (1954) 100. NaN stays NaN from its turn on.
    """
    drop = np.asarray(drop_nT, np.float64)
    assert drop.ndim == 2
    total = np.zeros(len(drop))
    sums = np.empty_like(drop)
    for turn in range(drop.shape[1]):
        total = np.maximum(0.0, total + drop[:, turn] - slack)
        sums[:, turn] = total
    return sums


@dataclass(frozen=True)
class Detector:
    """A calibrated detector: an alarm is a cumulative sum of ``(mean - z) / deviation`` above ``threshold``.

    ``calibrated`` is the number of dialogues that set the threshold, ``above`` that of those whose largest sum lies
    above it; both 0 for one that was not calibrated.
    """

    mean: float
    deviation: float
    threshold: float
    calibrated: int = 0
    above: int = 0

    def sums(self, z_nT: ArrayLike) -> FloatArray:
        """Cumulative sums ``[n, T]`` of streams ``z_t = log p(what fits the persona) - log p(what contradicts it)``."""
        return cusum((self.mean - np.asarray(z_nT, np.float64)) / self.deviation)

    def alarms(self, z_nT: ArrayLike) -> FloatArray:
        """Turn of the first alarm of each stream ``[n]``, from 1; infinite where there is none."""
        return first_above(self.sums(z_nT), self.threshold)

    def chance(self, alarms: int, dialogues: int) -> float:
        """Probability that so many, or more, of so many other dialogues raise an alarm, if they are like those before.

        The rate of alarms is not known, only that the threshold is one of the largest sums of ``calibrated`` dialogues:
        over all that may have been drawn the number of alarms is beta-binomial with ``above + 1`` and ``calibrated -
        above``. NaN without a calibration.
        Source  the rank argument again: Wilks, Ann. Math. Stat. 13 (1942) 400.
        """
        from scipy.stats import betabinom

        if self.calibrated == 0:
            return math.nan
        return float(betabinom.sf(alarms - 1, dialogues, self.above + 1, self.calibrated - self.above))


def first_above(sums_nT: FloatArray, threshold: float) -> FloatArray:
    """First turn ``[n]``, from 1, with a sum above the threshold; infinite where there is none."""
    above = sums_nT > threshold
    return np.where(above.any(1), above.argmax(1) + 1.0, np.inf)


def calibrate(in_control_nT: ArrayLike, *, rate: float = FALSE_ALARMS, turns: int = TURNS) -> Detector:
    """The detector that these dialogues without drift ask for: streams ``[n, T]`` of ``turns`` turns or more.

    The threshold is the ceil((n + 1)(1 - rate))-th smallest of the dialogues' largest sums: another such dialogue
    raises an alarm within ``turns`` with a probability of at most ``rate``, whatever the distribution of z and
    however its turns hang together. Nothing is assumed to be normal. Measure the false alarms on other dialogues.
    Raises ``ValueError`` for too few dialogues (19 at a rate of .05), too few turns, or streams that do not vary.
    Source  the rank argument of conformal prediction: Vovk et al., "Algorithmic learning in a random world" (2005).
    """
    streams = np.asarray(in_control_nT, np.float64)
    if streams.ndim != 2 or streams.shape[1] < turns:
        raise ValueError(f"streams of shape {streams.shape}: give [dialogues, turns] with at least {turns} turns")
    rank = math.ceil((len(streams) + 1) * (1 - rate) - 1e-9)
    if rank > len(streams):
        raise ValueError(
            f"{len(streams)} dialogues cannot show a false-alarm rate of {rate}; give {round(1 / rate) - 1}"
        )
    kept = streams[:, :turns]
    if not np.isfinite(kept).all() or kept.std() == 0:
        raise ValueError("the streams without drift hold a value that is not finite, or do not vary: nothing to expect")
    mean, deviation = float(kept.mean()), float(kept.std(ddof=1))
    largest = cusum((mean - kept) / deviation).max(1)
    threshold = float(np.sort(largest)[rank - 1])
    return Detector(mean, deviation, threshold, len(streams), len(streams) - rank)


@dataclass(frozen=True)
class DriftReading:
    """What the detector does on dialogues that did not calibrate it.

    false_alarms share of dialogues without drift that raise an alarm within the turns of the calibration
    chance       probability of as many of them or more (``Detector.chance``)
    detected     share of drifting dialogues that raise one from the change on, among those silent before it
    early        drifting dialogues with an alarm before the change: they have no delay
    mean_delay   turns from the change to the alarm, the first changed turn being 1, over the detected ones alone:
                 too short where some were missed; NaN when none was detected
    median_delay over detected and missed, a missed one being later than any; infinite when half are missed
    auc          probability that a drifting dialogue has a larger sum than one without drift
    """

    false_alarms: Interval
    chance: float
    detected: Interval
    early: int
    mean_delay: float
    median_delay: float
    auc: Interval


def read_drift(
    detector: Detector, in_control_nT: ArrayLike, drifting_nT: ArrayLike, *, change: int, turns: int = TURNS
) -> DriftReading:
    """Run the detector over dialogues ``[n, T]`` without drift and ``[m, T]`` that drift from turn ``change`` (from 0).

    Each dialogue is one observation; a dialogue that comes in both halves makes the intervals too wide, not too
    narrow. A stream that is not finite makes every number NaN: a broken model raises no alarm.
    """
    steady, drifting = np.asarray(in_control_nT, np.float64), np.asarray(drifting_nT, np.float64)
    if steady.ndim != 2 or steady.shape[1:] != drifting.shape[1:] or not 0 <= change < steady.shape[1]:
        raise ValueError(
            f"streams {steady.shape} and {drifting.shape}, change at {change}: give the same turns in both"
        )
    if not (np.isfinite(steady).all() and np.isfinite(drifting).all()):
        lost = Interval(math.nan, math.nan, math.nan, len(drifting), len(drifting))
        return DriftReading(lost, math.nan, lost, 0, math.nan, math.nan, lost)
    wrong = int((detector.alarms(steady) <= turns).sum())
    alarms = detector.alarms(drifting)
    early = alarms <= change
    delays = alarms[~early] - change
    found = np.isfinite(delays)
    detected = wilson(int(found.sum()), len(delays)) if len(delays) else Interval(math.nan, 0.0, 1.0, 0, 0)
    return DriftReading(
        wilson(wrong, len(steady)),
        detector.chance(wrong, len(steady)),
        detected,
        int(early.sum()),
        float(delays[found].mean()) if found.any() else math.nan,
        # no mean of two middle values: one of them may be infinite
        float(np.sort(delays)[len(delays) // 2]) if len(delays) else math.nan,
        area_under_roc(detector.sums(drifting).max(1), detector.sums(steady).max(1)),
    )


def area_under_roc(positive_m: ArrayLike, negative_n: ArrayLike, *, level: float = LEVEL) -> Interval:
    r"""Probability that a positive scores above a negative, ties half, with Newcombe's interval (his method 5).

        (A - theta)^2 = z^2 theta (1 - theta) / (m n) [1 + N (1 - theta) / (2 - theta) + N theta / (1 + theta)]

    with N = (m + n) / 2 - 1, solved for theta on both sides of A. Unlike a bootstrap it has width at A = 1.
    Source  Newcombe, Stat. Med. 25 (2006) 559; Hanley & McNeil, Radiology 143 (1982) 29.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    positive, negative = np.asarray(positive_m, np.float64), np.asarray(negative_n, np.float64)
    m, n = len(positive), len(negative)
    assert m > 0
    assert n > 0
    if np.isnan(positive).any() or np.isnan(negative).any():
        return Interval(math.nan, math.nan, math.nan, m + n, m + n)
    ordered = np.sort(negative)
    area = float(sum(np.searchsorted(ordered, positive, side).sum() for side in ("left", "right"))) / (2 * m * n)
    z2, extra = float(ndtri(0.5 + level / 2)) ** 2, (m + n) / 2 - 1

    def beyond(theta: float) -> float:
        spread = theta * (1 - theta) / (m * n) * (1 + extra * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
        return (area - theta) ** 2 - z2 * spread

    # at 0 and 1 the estimate is a root itself: step off it
    low = float(brentq(beyond, 0, min(area, 1 - 1e-12))) if area > 0 else 0.0
    high = float(brentq(beyond, max(area, 1e-12), 1)) if area < 1 else 1.0
    return Interval(area, low, high, m + n, m + n)
