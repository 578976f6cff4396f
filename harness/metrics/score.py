"""The state-health score: one number between 0 and 1, as good as the weakest of what it is made of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from harness.records import Limits

AT_PASS, AT_FAIL = 0.7, 0.3
"""Scores at the edges of the pass and of the warn band."""


@dataclass(frozen=True)
class Scale:
    """How a measurement becomes a score, beside its limits.

    ideal  where it scores 1. Between two ideals, as for a band, everything does
    log    the distance counts in orders of magnitude, as for ratios
    """

    ideal: tuple[float, float]
    log: bool = False


def subscore(value: float, limits: Limits, scale: Scale) -> float:
    """Piecewise linear: 1 at the ideal, .7 at the edge of the pass band, .3 at that of the warn band, then to 0.

    0 is reached at twice the edge of the warn band where less is better, at half of it where more is; where that edge
    is 0 or infinite nothing scores 0. 0 for a value that is not finite. On the edges the better score counts.
    """
    if not math.isfinite(value):
        return 0.0
    return min(_side(value, limits, scale, upper) for upper in (False, True))


def _side(value: float, limits: Limits, scale: Scale, upper: bool) -> float:
    """The score as far as one end of the bands decides."""
    # the lower end is the upper end of the negatives
    sign, end = (1.0, 1) if upper else (-1.0, 0)
    ideal, passing, failing = scale.ideal[end], limits.pass_band[end], limits.warn_band[end]
    if sign * value <= sign * ideal:
        return 1.0
    edges = [(ideal, 1.0), (passing, AT_PASS), (failing, AT_FAIL), (failing * 2**sign, 0.0)]
    known = [(sign * _place(edge, scale.log), score) for edge, score in edges if math.isfinite(_place(edge, scale.log))]
    place = sign * _place(value, scale.log)
    return max((_between(place, a, b) for a, b in pairwise(known) if a[0] <= place <= b[0]),
               default=known[-1][1] if place > known[-1][0] else 1.0)  # fmt: skip


def _between(place: float, start: tuple[float, float], stop: tuple[float, float]) -> float:
    if start[0] == stop[0]:
        return max(start[1], stop[1])
    return float(np.interp(place, [start[0], stop[0]], [start[1], stop[1]]))


def _place(value: float, log: bool) -> float:
    if not log:
        return value
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class StateScore:
    """The weakest subscore and the mean of all, with the name of the weakest."""

    value: float
    mean: float
    weakest: str

    @classmethod
    def of(cls, subscores: Mapping[str, float]) -> "StateScore":
        """The score of named subscores, at least one."""
        weakest = min(subscores, key=lambda name: subscores[name])
        return cls(subscores[weakest], float(np.mean(list(subscores.values()))), weakest)
