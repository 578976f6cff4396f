"""CER: how much training compute one model needs to reach a loss, over what another one needs.

    CER(L*) = C_reference(L*) / C_subject(L*),    C(L*) the compute at which the smoothed validation loss first is L*

Above 1 the subject needs less. Compute is anything that grows along a training: operations, or seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.metrics.intervals import Interval, t_interval

FloatArray = NDArray[np.float64]

NEIGHBOURS = 5
"""Evaluations behind each smoothed loss."""

DEPTHS = (0.5, 0.25, 0.05)
"""Where in the common range of losses the models are compared: its middle, a quarter, and just above its lower end,
which is the best loss that every training reaches."""


class NoCommonRangeError(ValueError):
    """No loss is reached by all trainings on the way down, so there is nothing to compare at."""


@dataclass(frozen=True)
class LearningCurve:
    """The validation loss along one training.

    compute, loss  ``[evaluations]`` in order: compute spent before each, above 0 and rising, and nats a token
    """

    compute: FloatArray
    loss: FloatArray

    def __post_init__(self) -> None:
        assert self.compute.shape == self.loss.shape
        assert self.compute.ndim == 1
        if len(self.loss) < NEIGHBOURS or not (np.isfinite(self.loss).all() and (self.loss > 0).all()):
            raise ValueError(
                f"{len(self.loss)} evaluations, {int(np.isfinite(self.loss).sum())} of them finite: a learning "
                f"curve needs at least {NEIGHBOURS}, all finite and above 0; evaluate more often "
                "(--set eval.every_steps=...)"
            )
        assert self.compute[0] > 0
        assert (np.diff(self.compute) > 0).all()

    def smoothed(self) -> FloatArray:
        """The loss at each evaluation on the straight line through its ``NEIGHBOURS`` nearest, in log-log.

        At the ends the neighbours all lie on one side. A power law passes through unchanged, where a moving average
        would lift it.
        """
        x_E, y_E = np.log(self.compute), np.log(self.loss)
        smooth = np.empty_like(y_E)
        for at in range(len(x_E)):
            first = min(max(at - NEIGHBOURS // 2, 0), len(x_E) - NEIGHBOURS)
            near = slice(first, first + NEIGHBOURS)
            _, level = np.polyfit(x_E[near] - x_E[at], y_E[near], 1)
            smooth[at] = level
        return np.exp(smooth)

    def reach(self, target: float) -> float:
        """Compute at which the smoothed loss first is ``target``, interpolated in log-log.

        NaN where it never is; the first evaluation's compute where the loss starts below.
        """
        smooth_E = self.smoothed()
        below = np.flatnonzero(smooth_E <= target)
        if not len(below):
            return math.nan
        at = int(below[0])
        if at == 0:
            return float(self.compute[0])
        (x0, x1), (y0, y1) = np.log(self.compute[at - 1 : at + 1]), np.log(smooth_E[at - 1 : at + 1])
        return float(np.exp(x0 + (x1 - x0) * (y0 - math.log(target)) / (y0 - y1)))


def common_targets(curves: Sequence[LearningCurve]) -> tuple[float, ...]:
    """The losses to compare at, highest first: ``DEPTHS`` of the range that all curves pass through.

    Raises ``NoCommonRangeError`` where there is no such range.
    """
    smooth = [curve.smoothed() for curve in curves]
    high, low = min(float(s[0]) for s in smooth), max(float(s.min()) for s in smooth)
    if not low < high:
        raise NoCommonRangeError(
            f"one training is at {high:.3f} nats when it is first evaluated, another never gets below {low:.3f}: no "
            "loss is passed by both; train the worse one longer, or evaluate earlier (--set eval.every_steps=...)"
        )
    return tuple(low + depth * (high - low) for depth in DEPTHS)


def compute_efficiency(reference: Sequence[LearningCurve], subject: Sequence[LearningCurve], target: float) -> Interval:
    """CER at ``target``: geometric mean over seeds, paired; Student's interval on the logarithms.

    Two curves a seed, in the same order. A handful of seeds is too few to resample: with three, the bootstrap spans
    the smallest and the largest and no more. The bounds of a single seed are 0 and infinity. Raises ``ValueError``
    where a curve does not reach the target.
    """
    pairs = [(r.reach(target), s.reach(target)) for r, s in zip(reference, subject, strict=True)]
    logs = np.log([r / s for r, s in pairs])
    if not np.isfinite(logs).all():
        raise ValueError(f"a curve never reaches {target:.3f} nats; take targets from common_targets")
    interval = t_interval(logs)
    low, high = (math.exp(bound) if math.isfinite(bound) else (0.0 if bound < 0 else bound) for bound in interval.ci)
    return Interval(math.exp(interval.value), low, high, len(pairs), len(pairs))
