"""What the log of one training says about its dynamics: trend, gradients, balance of branches, stopping criteria."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.metrics.baselines import NaiveLoss
from harness.metrics.gradients import GradientSummary, gradient_ratio, gradient_summary, per_parameter_ratio
from harness.metrics.intervals import ClusterRatio, Interval
from harness.metrics.trend import TrendResult, loss_trend
from harness.runlog import read_rows

LAST_STEPS = 200
"""Gradient statistics are over this many last steps (docs/metrics.md, G3 and G4)."""


@dataclass(frozen=True)
class BranchRatios:
    """RWKV-6 over Mamba-2, over the last steps.

    gradients      median ratio of gradient norms
    per_parameter  the same as a ratio of root mean squares
    updates        median ratio of relative updates ||dW|| / ||W||
    smallest_norm  by branch, the smallest gradient norm of those steps: 0 is a dead branch
    """

    gradients: Interval
    per_parameter: float
    updates: Interval
    smallest_norm: Mapping[str, float]
    steps: int


class TrainingLog:
    """The log of a training, read once."""

    def __init__(self, directory: Path, warmup_steps: int, clip_norm: float) -> None:
        self.directory, self.warmup_steps, self.clip_norm = directory, warmup_steps, clip_norm

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Every row, in order."""
        return read_rows(self.directory)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind: see ``harness.runlog``."""
        return [row for row in self.rows if row["kind"] == kind]

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The step rows."""
        return self.of_kind("step")

    def series(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One number of every step row that has it."""
        return np.array([row[name] for row in self.steps if name in row], dtype=np.float64)

    def loss_trend(self) -> TrendResult:
        """The trend of the training loss after warm-up. Raises ``UnderpoweredError``."""
        after = [row for row in self.steps if row["step"] > self.warmup_steps]
        highest = max((row["lr"] for row in after), default=math.inf)
        decay_from = next((row["step"] for row in after if row["lr"] < highest), None)
        return loss_trend([row["step"] for row in after], [row["loss"] for row in after], decay_from=decay_from)

    def gradient_summary(self) -> GradientSummary:
        """Pre-clip gradient norms over the last steps."""
        return gradient_summary(self.series("grad_norm"), self.clip_norm, last=LAST_STEPS)

    @property
    def gradient_steps(self) -> int:
        """How many steps ``gradient_summary`` is over."""
        return min(len(self.steps), LAST_STEPS)

    def branch_ratios(self, *, seed: int) -> BranchRatios:
        """Balance of the two branches of a hybrid; ``seed`` is that of the intervals."""
        norms = {branch: self.series(f"grad_norm_{branch}") for branch in ("rwkv", "mamba")}
        updates = {branch: self.series(f"update_ratio_{branch}") for branch in ("rwkv", "mamba")}
        ratio = gradient_ratio(norms["rwkv"], norms["mamba"], seed=seed, last=LAST_STEPS)
        [header] = self.of_kind("header")
        sizes = {branch: int(header[f"num_params_{branch}"]) for branch in norms}
        return BranchRatios(
            ratio,
            per_parameter_ratio(ratio.value, sizes["rwkv"], sizes["mamba"]),
            gradient_ratio(updates["rwkv"], updates["mamba"], seed=seed, last=LAST_STEPS),
            {branch: float(values[-LAST_STEPS:].min()) for branch, values in norms.items()},
            min(len(self.steps), LAST_STEPS),
        )

    def final_evaluation(self) -> ClusterRatio:
        """The last validation loss by document: sums of nats over counts of tokens."""
        [row] = self.of_kind("final_eval")
        return evaluation_ratio(row)

    def final_documents(self) -> dict[str, tuple[float, float]]:
        """Sum of nats and count of targets of each validation document, by its index in the split."""
        [row] = self.of_kind("final_eval")
        sums = zip(row["loss_sums"], row["token_counts"], strict=True)
        return {str(document): pair for document, pair in zip(row["documents"], sums, strict=True)}


def evaluation_ratio(row: Mapping[str, Any]) -> ClusterRatio:
    """An ``eval`` or ``final_eval`` row as a ratio of sums by document."""
    sums, counts = np.asarray(row["loss_sums"], np.float64), np.asarray(row["token_counts"], np.float64)
    return ClusterRatio(sums, counts, int(row["tokens"]))


def naive_ratio(naive: NaiveLoss) -> ClusterRatio:
    """A baseline's loss as a ratio of sums by document, to be paired with a model's on the same windows."""
    counts = naive.document_targets.astype(np.float64)
    return ClusterRatio(naive.document_nats * counts, counts, int(counts.sum()))


def margin(loss: ClusterRatio, floor: ClusterRatio, ceiling: ClusterRatio) -> ClusterRatio:
    """Where a loss lies between two baselines: 0 at ``floor``, 1 at ``ceiling``, below 0 better than both."""
    return ClusterRatio(loss.minus(floor).numerators, ceiling.minus(floor).numerators, loss.n)
