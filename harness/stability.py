"""How steadily a training went, by its log: numbers that are none, divergence, spikes, clipping; and over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from harness.metrics.intervals import LEVEL
from harness.monitors import StopLimits
from harness.monitors.loss import SPIKE_WINDOW, Spike, finite_loss

SMOOTHED_EVALS = 3
"""Evaluations that one smoothed validation loss is the mean of."""

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Spikes:
    """Spikes of the training loss.

    first_steps  the step at which each began; steps in a row above the line are one spike
    unrecovered  how many were still above the line 200 steps later, or when the log ended
    steps        steps with a finite loss; the first 101 have no median behind them and can show no spike
    """

    first_steps: tuple[int, ...]
    unrecovered: int
    steps: int

    @property
    def judged_steps(self) -> int:
        """Steps at which a spike could have been seen."""
        return max(0, self.steps - SPIKE_WINDOW)

    @property
    def per_1000(self) -> float:
        """Spikes in 1000 steps of the training."""
        return 1000 * len(self.first_steps) / self.steps


def find_spikes(rows: Rows, limits: StopLimits) -> Spikes:
    """Spikes by the rule of the stopping criteria: above median + max(6 scaled MADs, .2 nat) of the last 101 losses."""
    rule = Spike(limits)
    first_steps: list[int] = []
    unrecovered = steps = 0
    for row in rows:
        loss = finite_loss(row)
        if loss is None:
            continue
        steps += 1
        was_spiking = rule.memory.since is not None
        if any(event.kind == "ALERT" for event in rule.observe(row)):
            first_steps.append(int(row["step"]))
        # the rule also lets go of a loss that has settled above the line, and measures afresh from there
        if was_spiking and rule.memory.since is None and loss > rule.memory.line:
            unrecovered += 1
    return Spikes(tuple(first_steps), unrecovered + (rule.memory.since is not None), steps)


def divergence(losses: Sequence[float]) -> float:
    """Last smoothed validation loss minus the least one, nats: 0 where the loss never turned, infinite for NaN.

    Smoothed is the mean of three evaluations in a row; of half of them where there are fewer than six.
    """
    values = np.asarray(losses, np.float64)
    assert len(values) > 0
    if not np.isfinite(values).all():
        return math.inf
    width = min(SMOOTHED_EVALS, max(1, len(values) // 2))
    smoothed = np.convolve(values, np.full(width, 1 / width), mode="valid")
    return float(smoothed[-1] - smoothed.min())


def count_non_finite(rows: Rows, weights: Path | None) -> int:
    """Steps and evaluations with a loss or gradient norm that is no number, plus tensors of the final weights so."""
    bad_rows = sum(not all(math.isfinite(value) for value in _measured(row)) for row in rows)
    tensors = load_file(weights) if weights is not None else {}
    return bad_rows + sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def _measured(row: Mapping[str, Any]) -> list[float]:
    """Losses and gradient norms of a row; ratios may be infinite where nothing is wrong."""
    if row["kind"] not in ("step", "eval", "final_eval"):
        return []
    return [value for key, value in row.items() if key in ("loss", "val_loss") or key.startswith("grad_norm")]


def clip_fraction(rows: Rows, warmup_steps: int) -> float:
    """Share of the updates after the warm-up whose gradient was clipped; NaN where there is none."""
    clipped = [bool(row["clipped"]) for row in rows if row["kind"] == "step" and row["step"] > warmup_steps]
    return float(np.mean(clipped)) if clipped else math.nan


def seed_deviation(losses: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Standard deviation over seeds (n - 1), and its 90 % interval if the losses are normal.

    With three seeds that interval reaches from .58 to 4.4 times the value. Raises ValueError for fewer than two.
    """
    from scipy.special import chdtri

    n = len(losses)
    if n < 2:
        raise ValueError(f"{n} seeds: a standard deviation needs at least two")
    deviation = float(np.std(np.asarray(losses, np.float64), ddof=1))
    # (n - 1) s^2 / sigma^2 has a chi-square distribution; chdtri inverts its upper tail
    high, low = (math.sqrt((n - 1) / float(chdtri(n - 1, tail))) for tail in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return deviation, (deviation * low, deviation * high)
