"""Stopping criteria on the branches: collapse, death, gradients that differ too much."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

from harness.events import Event
from harness.monitors.rule import Memory, Rule

# Output projections may start at zero, so a branch need not write anything before this step
WRITES_FROM_STEP = 5
PERSISTENT_PROBES = 3
# The gradient ratio starts near zero for the same reason and takes this long to settle; then the median over a window
RATIO_FROM_STEP, RATIO_WINDOW, RATIO_EVERY = 200, 200, 50


@dataclass
class BranchMemory(Memory):
    """Per branch: probes in a row at which the condition held; branches already reported."""

    held: dict[str, int] = field(default_factory=dict)
    raised: list[str] = field(default_factory=list)


B = TypeVar("B", bound=BranchMemory)


class _BranchRule(Rule[B]):
    """A rule on probe rows, branch by branch."""

    def _hold(self, row: Mapping[str, Any], branch: str, evidence: str, probes: int) -> list[Event]:
        """STOP once the evidence (empty: healthy) was there for ``probes`` probes in a row, once an episode."""
        m = self.memory
        m.held[branch] = m.held.get(branch, 0) + 1 if evidence else 0
        if not evidence and branch in m.raised:
            m.raised.remove(branch)
        if m.held[branch] < probes or branch in m.raised:
            return []
        m.raised.append(branch)
        return [self.event("STOP", row, evidence)]


@dataclass
class CollapseMemory(BranchMemory):
    """Besides, the learning rate of the last step and whether it was above the one before."""

    lr: float | None = None
    warming_up: bool = False


class Collapse(_BranchRule[CollapseMemory]):
    """A branch writes the same whatever it reads, or many of its channels never write.

    Not judged while the learning rate rises: a model that has hardly moved writes what its biases and norms give it.
    A sound GPT-2 of 3.5M shows rho = .0095 at step 20 of a warm-up of 50, .15 at its end and .18 at step 100.
    """

    criterion = "collapse"
    memory_type = CollapseMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge at every probe after the warm-up that measured ``rho_<branch>`` or ``dead_<branch>``."""
        m = self.memory
        if row["kind"] == "step":
            m.warming_up, m.lr = m.lr is not None and row["lr"] > m.lr, row["lr"]
        if row["kind"] != "probe" or row["step"] < WRITES_FROM_STEP or m.warming_up:
            return []
        events: list[Event] = []
        for branch in _branches(row, "rho_", "dead_"):
            self.memory.fed += 1
            rho, dead = row.get(f"rho_{branch}"), row.get(f"dead_{branch}")
            faults = []
            # written so that NaN, a branch that writes nothing at all, is a fault
            if rho is not None and not rho >= self.limits.write_sensitivity:
                faults.append(f"{branch} writes with rho {rho:.4f}, at least {self.limits.write_sensitivity:g} wanted")
            if dead is not None and not dead <= self.limits.dead_channels:
                faults.append(f"{dead:.0%} of the channels of {branch} never write")
            events += self._hold(row, branch, "; ".join(faults), probes=1)
        return events


class DeadBranch(_BranchRule[BranchMemory]):
    """Taking the state of a branch away changes nothing and it carries no information, at three probes in a row."""

    criterion = "dead_branch"
    memory_type = BranchMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge at every probe that has both the ablation's interval and the information share."""
        if row["kind"] != "probe":
            return []
        events: list[Event] = []
        for branch in _branches(row, "info_share_"):
            if f"delta_loss_low_{branch}" not in row:
                continue
            self.memory.fed += 1
            low, high = row[f"delta_loss_low_{branch}"], row[f"delta_loss_high_{branch}"]
            share = row[f"info_share_{branch}"]
            is_dead = low <= 0 <= high and share < self.limits.info_share
            text = f"ablating {branch} changes loss by {low:.4f} .. {high:.4f} nats, information share {share:.3f}"
            events += self._hold(row, branch, text if is_dead else "", PERSISTENT_PROBES)
        return events


def _branches(row: Mapping[str, Any], *prefixes: str) -> list[str]:
    """Branches that a probe row has measurements of, in order of appearance."""
    return list(dict.fromkeys(key.removeprefix(p) for key in row for p in prefixes if key.startswith(p)))


@dataclass
class RatioMemory(Memory):
    """The last gradient norms as ``[rwkv, mamba]`` and whether the present excursion was reported."""

    norms: list[list[float]] = field(default_factory=list)
    raised: bool = False


class GradientRatio(Rule[RatioMemory]):
    """Gradients of one branch are far larger than the other's. Only ever an ALERT: it is no measure of use."""

    criterion = "gradient_ratio"
    memory_type = RatioMemory

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Judge the median over the last 200 steps, every 50."""
        if row["kind"] != "step" or "grad_norm_rwkv" not in row or "grad_norm_mamba" not in row:
            return []
        m = self.memory
        m.fed += 1
        if row["step"] <= RATIO_FROM_STEP:
            return []
        norms = [float(row["grad_norm_rwkv"]), float(row["grad_norm_mamba"])]
        if all(map(math.isfinite, norms)):
            m.norms.append(norms)
        del m.norms[:-RATIO_WINDOW]
        if len(m.norms) < RATIO_WINDOW or row["step"] % RATIO_EVERY:
            return []
        # no gradient in Mamba-2 is infinite, whatever RWKV-6 has: a branch without gradient is what this looks for
        ratio = median(rwkv / mamba if mamba else math.inf for rwkv, mamba in m.norms)
        low, high = self.limits.gradient_ratio
        outside, known = not low <= ratio <= high, m.raised
        m.raised = outside
        if not outside or known:
            return []
        text = f"gradient norm of RWKV-6 over Mamba-2 is {ratio:.3g}, median of {RATIO_WINDOW} steps"
        return [self.event("ALERT", row, f"{text}; allowed {low:g} .. {high:g}")]
