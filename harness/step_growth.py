"""D1 and D2 along a training: what the probe rows of its log say of the size and the collapse of the states."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from harness.metrics.growth import MIN_POINTS, variation
from harness.metrics.trend import theil_sen

LAST_PART = 0.2
"""Share of the training, at its end, over which the size of a state should hold still."""

MIN_ROWS = 3
"""Probe rows that a trend needs."""


@dataclass(frozen=True)
class LayerSteps:
    """One state of one layer along a training.

    state       the branch, or ``branch.kind``
    steps       updates before each probe
    rms         RMS of each head, ``[probe][head]``, in the state's own unit
    rho         how much the state depends on what was read, by probe; unit 1
    warmed      index of the first probe at or after the end of the warm-up; middle: at or after half of the training
    """

    layer: int
    state: str
    steps: list[int]
    rms: list[list[float]]
    rho: list[float]
    warmed: int
    middle: int

    def growth(self, since: int) -> list[float]:
        """RMS at the last probe over RMS at probe ``since``, of each head; NaN where that was zero."""
        return [last / first if first else math.nan for first, last in zip(self.rms[since], self.rms[-1], strict=True)]

    @property
    def late_growth(self) -> tuple[float, int]:
        """The largest growth since the middle of the training and its head; what is not finite counts as largest."""
        grown = self.growth(self.middle)
        head = int(np.argmax(np.where(np.isfinite(grown), grown, np.inf)))
        return grown[head], head

    @property
    def late_variation(self) -> tuple[float, float] | None:
        """Variation of the RMS over the last fifth of the training: of the median head and of the worst.

        None when fewer than four probes lie there.
        """
        late = [i for i, step in enumerate(self.steps) if step >= (1 - LAST_PART) * self.steps[-1]]
        if len(late) < MIN_POINTS:
            return None
        cv_H = [variation([self.rms[i][head] for i in late]) for head in range(len(self.rms[0]))]
        # one head that is not finite must not hide behind the median
        worst = math.nan if any(map(math.isnan, cv_H)) else max(cv_H)
        return (worst if math.isnan(worst) else median(cv_H)), worst

    @property
    def kept_sensitivity(self) -> float:
        """The last rho over that at the end of the warm-up, unit 1; NaN where that was zero."""
        return self.rho[-1] / self.rho[self.warmed] if self.rho[self.warmed] else math.nan

    @property
    def sensitivity_trend(self) -> float | None:
        """Theil-Sen slope of rho by e-fold of steps, after the warm-up; None for fewer than ``MIN_ROWS`` probes."""
        steps, rho = self.steps[self.warmed :], self.rho[self.warmed :]
        if len(steps) < MIN_ROWS or not np.isfinite(rho).all():
            return None
        return theil_sen(np.log(steps), rho)[0]


def layer_steps(rows: Sequence[Mapping[str, Any]], warmup_steps: int) -> list[LayerSteps]:
    """Every state of every layer along the probe rows of a log; empty where the rows tell of no state.

    Rows without states, as logs of earlier versions hold, are left out. Two rows after the warm-up are the least that
    growth can be read off: with fewer the list is empty.
    """
    told = [row for row in rows if row.get("state_rms")]
    steps = [int(row["step"]) for row in told]
    warmed = next((i for i, step in enumerate(steps) if step >= warmup_steps), len(steps))
    middle = next((i for i, step in enumerate(steps) if step >= max(steps[-1] / 2, warmup_steps)), len(steps))
    if middle >= len(steps) - 1:
        return []
    return [
        LayerSteps(
            layer,
            state,
            steps,
            [row["state_rms"][state][layer] for row in told],
            [row["state_rho"][state][layer] for row in told],
            warmed,
            middle,
        )
        for state, layers in told[0]["state_rms"].items()
        for layer, heads in enumerate(layers)
        if heads is not None
    ]
