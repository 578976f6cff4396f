"""Stopping criteria on the losses: numbers that are none, overfit, drops without gain, oscillation, spikes.

What is too much is in ``StopLimits``; over what it is counted is the definition of the criterion and stands here.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.events import Event
from harness.metrics.trend import autocorrelation_time, theil_sen
from harness.monitors.rule import Memory, Rule, StopLimits

# Evals that must agree before a verdict on the validation loss
PERSISTENT_EVALS = 3
# Train losses that a slope needs and the most that are kept; block means it runs on; learning rates that are alike
SLOPE_STEPS, SLOPE_HISTORY, SLOPE_BLOCKS, LIKE_LR = 40, 2000, 20, 0.01
# A learning rate at or below this share of the last level is a drop; the gain is judged over two of them
LR_DROP, LR_DROPS_JUDGED = 0.5, 2
# Oscillation: window and spacing of looks, in steps; largest standard error of a block mean; reversals; fewest blocks
OSCILLATION_WINDOW, OSCILLATION_EVERY, BLOCK_SE_NATS, REVERSALS, OSCILLATION_BLOCKS = 1000, 50, 0.05, 3, 8
BLOCK_LENGTHS = (5, 10, 20, 40, 80)
# Spike: losses behind the running median; steps within which a run has to come back
SPIKE_WINDOW, SPIKE_RECOVERY_STEPS = 101, 200
# Standard deviations of a normal distribution in one median absolute deviation
MAD_TO_SD = 1.4826


def finite_loss(row: Mapping[str, Any]) -> float | None:
    """Training loss of a step row; None for other rows and for a loss that is not finite."""
    if row["kind"] != "step" or not math.isfinite(row["loss"]):
        return None
    return float(row["loss"])


@dataclass
class OnceMemory(Memory):
    """Whether the condition that holds now was reported."""

    raised: bool = False


class NonFinite(Rule[OnceMemory]):
    """A loss or gradient norm is NaN or infinite."""

    criterion = "non_finite"
    memory_type = OnceMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge at every step and eval, once a run."""
        keys = {"step": ("loss", "grad_norm"), "eval": ("val_loss",)}.get(row["kind"], ())
        self.memory.fed += bool(keys)
        bad = [key for key in keys if key in row and not math.isfinite(row[key])]
        if not bad or self.memory.raised:
            return []
        self.memory.raised = True
        return [self.event("STOP", row, ", ".join(f"{key} = {row[key]}" for key in bad))]


@dataclass
class OverfitMemory(Memory):
    """Recent validation losses, the best so far, train steps since then as ``[step, lr, loss]``."""

    recent: list[float] = field(default_factory=list)
    best: float | None = None
    train: list[list[float]] = field(default_factory=list)
    raised: str = ""


class Overfit(Rule[OverfitMemory]):
    """Validation loss stays above its best while training loss falls.

    The rise is the least of the last three evals over the best one, so it has persisted by construction. ALERT on
    the rise alone; STOP when train loss since the best also falls (Theil-Sen on block means, over steps of one
    learning rate, the median: a loss that falls because the rate does says nothing). Where too few such steps
    exist, as under a cosine, it stays at ALERT.
    """

    criterion = "overfit"
    memory_type = OverfitMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge at every eval."""
        m = self.memory
        loss = finite_loss(row)
        if loss is not None and m.best is not None:
            m.train.append([row["step"], row["lr"], loss])
            del m.train[:-SLOPE_HISTORY]
        if row["kind"] != "eval" or not math.isfinite(row["val_loss"]):
            return []
        m.fed += 1
        m.recent = [*m.recent, float(row["val_loss"])][-PERSISTENT_EVALS:]
        if m.best is None or row["val_loss"] < m.best:
            m.best, m.train, m.raised = float(row["val_loss"]), [], ""
        if len(m.recent) < PERSISTENT_EVALS:
            return []
        return self._judge(row, min(m.recent) / m.best - 1, m.best)

    def _judge(self, row: Mapping[str, Any], rise: float, best: float) -> list[Event]:
        m, limits = self.memory, self.limits
        if rise <= limits.overfit_alert:
            m.raised = ""
            return []
        slope = self._train_slope()
        text = f"validation loss {rise:.1%} above its best {best:.3f} nats for {PERSISTENT_EVALS} evals"
        if rise > limits.overfit_stop and slope is not None and slope < 0:
            if m.raised == "STOP":
                return []
            m.raised = "STOP"
            return [self.event("STOP", row, f"{text} while train loss falls {slope:.3f} nats per e-fold of steps")]
        if m.raised:
            return []
        m.raised = "ALERT"
        trend = "too few steps at this learning rate for a train slope" if slope is None else f"train slope {slope:.3f}"
        return [self.event("ALERT", row, f"{text}; {trend}")]

    def _train_slope(self) -> float | None:
        """Nats per e-fold of steps since the best eval, over steps of one learning rate; None when they are too few."""
        rows = np.array(self.memory.train).reshape(-1, 3)
        if len(rows):
            usual = np.median(rows[:, 1])
            rows = rows[np.abs(rows[:, 1] - usual) <= LIKE_LR * usual]
        if len(rows) < SLOPE_STEPS:
            return None
        length = -(-len(rows) // SLOPE_BLOCKS)
        blocks = rows[len(rows) % length :].reshape(-1, length, 3).mean(1)
        return theil_sen(np.log(blocks[:, 0]), blocks[:, 2])[0]


@dataclass
class LrDropMemory(Memory):
    """Level of the learning rate, drops since the reference, best validation losses before and after them."""

    level: float = 0.0
    drops: int = 0
    evals_after: int = 0
    reference: float | None = None
    best: float | None = None


class LrDrops(Rule[LrDropMemory]):
    """Two cumulative halvings of the learning rate that bring the best validation loss no further.

    For schedules that drop the rate when progress stalls, and for steps. The gain is judged three evals after the
    second drop, against the standard error of the validation loss, which eval rows must then carry.
    """

    criterion = "lr_drops"
    memory_type = LrDropMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Count drops at steps, judge at evals."""
        m = self.memory
        if row["kind"] == "step":
            if m.level and row["lr"] <= LR_DROP * m.level:
                if m.drops == 0:
                    m.reference = m.best
                m.drops, m.evals_after, m.level = m.drops + 1, 0, row["lr"]
            # a rate that rises (warm-up, restart) sets a new level
            m.level = max(m.level, row["lr"])
            return []
        if row["kind"] != "eval" or not math.isfinite(row["val_loss"]):
            return []
        m.fed += 1
        m.best = row["val_loss"] if m.best is None else min(m.best, row["val_loss"])
        if m.drops < LR_DROPS_JUDGED or m.reference is None:
            return []
        m.evals_after += 1
        return self._judge(row, m.reference - m.best) if m.evals_after >= PERSISTENT_EVALS else []

    def _judge(self, row: Mapping[str, Any], gain: float) -> list[Event]:
        if "val_se" not in row:
            raise HarnessError(
                f"the eval row of step {row['step']} has no val_se: learning-rate drops are judged in standard errors "
                "of the validation loss; log it, or leave the monitor out"
            )
        self.memory.drops = 0
        if gain >= self.limits.lr_drop_gain * row["val_se"]:
            return []
        text = f"{LR_DROPS_JUDGED} learning-rate drops gained {gain:.4f} nats, standard error {row['val_se']:.4f}"
        return [self.event("STOP", row, text)]


@dataclass
class OscillationMemory(Memory):
    """The last training losses and whether the present oscillation was reported."""

    losses: list[float] = field(default_factory=list)
    raised: bool = False


class Oscillation(Rule[OscillationMemory]):
    """Training loss swings up and down: at least three reversals between swings of the limit, within 1000 steps.

    On block means whose standard error is below .05 nat, never on single batches. What is taken out as trend is the
    best falling curve (isotonic regression): it follows any learning curve and cannot follow a swing upwards.
    """

    criterion = "oscillation"
    memory_type = OscillationMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Collect losses; look every 50 steps."""
        loss = finite_loss(row)
        if loss is None:
            return []
        m = self.memory
        m.fed += 1
        m.losses.append(loss)
        del m.losses[:-OSCILLATION_WINDOW]
        if m.fed % OSCILLATION_EVERY:
            return []
        blocks = precise_block_means(np.array(m.losses))
        if blocks is None:
            return []
        reversals = count_reversals(detrend_falling(blocks), self.limits.oscillation)
        oscillates, known = reversals >= REVERSALS, m.raised
        m.raised = oscillates
        if not oscillates or known:
            return []
        text = f"{reversals} reversals of at least {self.limits.oscillation:g} nats in {len(m.losses)} steps"
        return [self.event("STOP", row, f"{text}, on {len(blocks)} block means")]


def precise_block_means(losses: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Means of the shortest blocks whose standard error is below ``BLOCK_SE_NATS``; None where none are short enough.

    Noise is what a straight line leaves inside each block; its autocorrelation counts.
    """
    for length in BLOCK_LENGTHS:
        count = len(losses) // length
        if count < OSCILLATION_BLOCKS:
            return None
        blocks = losses[-count * length :].reshape(count, length)
        means: NDArray[np.float64] = blocks.mean(1)
        time = np.arange(length) - (length - 1) / 2
        slopes = blocks @ time / (time @ time)
        noise = (blocks - means[:, None] - slopes[:, None] * time).ravel()
        sd = math.sqrt(float(np.square(noise).sum()) / (count * (length - 2)))
        if sd * math.sqrt(2 * autocorrelation_time(noise) / length) < BLOCK_SE_NATS:
            return means
    return None


def detrend_falling(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take the least-squares non-increasing curve out of a series.

    Its value at k is the least over i <= k of the greatest over j >= k of the mean of values i .. j.
    Source  Barlow et al., "Statistical inference under order restrictions" (1972), theorem 1.4.
    """
    index = np.arange(len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    is_span = index[None, :] >= index[:, None]
    means = (total[None, 1:] - total[:-1, None]) / np.where(is_span, index[None, :] - index[:, None] + 1, 1)
    greatest = np.maximum.accumulate(np.where(is_span, means, -np.inf)[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(values - np.where(is_span, greatest, np.inf).min(axis=0), dtype=np.float64)


def count_reversals(values: NDArray[np.float64], size: float) -> int:
    """Count changes of direction between successive swings of at least ``size``, smaller ones being ignored."""
    low = high = float(values[0])
    direction, swings = 0, 0
    for value in values.tolist():
        low, high = min(low, value), max(high, value)
        if direction <= 0 and value - low >= size:
            direction, swings, high = 1, swings + 1, value
        elif direction >= 0 and high - value >= size:
            direction, swings, low = -1, swings + 1, value
    return max(swings - 1, 0)


@dataclass
class SpikeMemory(Memory):
    """The losses behind the median in order and, during a spike, where it began and what it is measured by."""

    window: list[float] = field(default_factory=list)
    since: int | None = None
    median: float = 0.0
    line: float = 0.0
    worst: float = 0.0


class Spike(Rule[SpikeMemory]):
    """Training loss jumps: ALERT when it leaves the noise, STOP when it passed twice the median and did not come back.

    The line is median + max(6 scaled MADs, .2 nat) over the last 101 losses, at the values of thresholds.toml. The
    median stays as it was while the spike lasts: a running one would catch up and call the damage normal.
    """

    criterion = "spike"
    memory_type = SpikeMemory

    def __init__(self, limits: StopLimits) -> None:
        super().__init__(limits)
        self._sorted: list[float] = []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        super().load_state_dict(state)
        self._sorted = sorted(self.memory.window)

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge at every step."""
        loss = finite_loss(row)
        if loss is None:
            return []
        m = self.memory
        m.fed += 1
        if m.since is not None and loss > m.line:
            m.worst = max(m.worst, loss)
            return self._overdue(row, m.since)
        m.since = None
        if len(m.window) == SPIKE_WINDOW and self._begins(loss):
            m.since, m.worst = int(row["step"]), loss
            text = f"loss {loss:.3f} above {m.line:.3f} (median {m.median:.3f} of {SPIKE_WINDOW} steps)"
            return [self.event("ALERT", row, text)]
        self._push(loss)
        return []

    def _begins(self, loss: float) -> bool:
        m = self.memory
        m.median = self._sorted[SPIKE_WINDOW // 2]
        # the floor alone decides nearly every step without the cost of a MAD
        if loss <= m.median + self.limits.spike_nats:
            return False
        mad = sorted(abs(value - m.median) for value in m.window)[SPIKE_WINDOW // 2]
        m.line = m.median + max(self.limits.spike_mads * MAD_TO_SD * mad, self.limits.spike_nats)
        return loss > m.line

    def _overdue(self, row: Mapping[str, Any], since: int) -> list[Event]:
        m = self.memory
        if row["step"] - since < SPIKE_RECOVERY_STEPS:
            return []
        # the loss has settled elsewhere: measure from there on
        m.since, m.window, self._sorted = None, [], []
        if m.worst <= self.limits.spike_ratio * m.median:
            return []
        text = f"loss rose to {m.worst:.3f}, over {self.limits.spike_ratio:g} times the median {m.median:.3f}"
        return [self.event("STOP", row, f"{text}, and was above {m.line:.3f} for {SPIKE_RECOVERY_STEPS} steps")]

    def _push(self, loss: float) -> None:
        window = self.memory.window
        window.append(loss)
        insort(self._sorted, loss)
        if len(window) > SPIKE_WINDOW:
            del self._sorted[bisect_left(self._sorted, window.pop(0))]
