"""The stopping criteria: rules that watch a training while it runs and say when to stop it, with the evidence.

They read rows as the training loop logs them: ``step`` rows with ``loss``, ``lr``, ``grad_norm`` and
``grad_norm_<branch>``; ``eval`` rows with ``val_loss`` and ``val_se``; ``probe`` rows with ``rho_<branch>``,
``dead_<branch>``, ``delta_loss_low_<branch>``, ``delta_loss_high_<branch>`` and ``info_share_<branch>``, whichever
were measured. A rule whose rows never come stays silent, and ``StopMonitors.unfed`` names it: silence is not health.
"""

from collections.abc import Mapping
from typing import Any, Literal

from harness.errors import HarnessError
from harness.events import Event
from harness.monitors.branch import Collapse, DeadBranch, GradientRatio
from harness.monitors.loss import LrDrops, NonFinite, Oscillation, Overfit, Spike
from harness.monitors.rule import Rule, StopLimits

__all__ = ["Schedule", "StopLimits", "StopMonitors"]

Schedule = Literal["constant", "warmup-stable-decay", "cosine", "plateau", "step"]

# Schedules whose learning rate falls because progress stalled, or in steps: elsewhere a drop is no experiment
DROPPING_SCHEDULES = ("plateau", "step")


class StopMonitors:
    """All stopping criteria of one training, as one monitor.

    not_applicable  criteria that this schedule rules out, each with the reason
    """

    def __init__(self, limits: StopLimits, schedule: Schedule) -> None:
        self.rules: list[Rule[Any]] = [
            rule(limits) for rule in (NonFinite, Overfit, Oscillation, Spike, Collapse, DeadBranch, GradientRatio)
        ]
        self.not_applicable: dict[str, str] = {}
        if schedule in DROPPING_SCHEDULES:
            self.rules.append(LrDrops(limits))
        else:
            self.not_applicable[LrDrops.criterion] = (
                f"a {schedule} schedule does not drop the learning rate because progress stalled"
            )

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """Every event of every rule for a row."""
        return [event for rule in self.rules for event in rule.observe(row)]

    def unfed(self) -> tuple[str, ...]:
        """Criteria that never saw a row they could use: not measured, which is not the same as not met."""
        return tuple(rule.criterion for rule in self.rules if not rule.memory.fed)

    def state_dict(self) -> dict[str, Any]:
        """Memory of every rule by criterion, as JSON values."""
        return {rule.criterion: rule.state_dict() for rule in self.rules}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave. ``HarnessError`` when the criteria differ."""
        criteria = [rule.criterion for rule in self.rules]
        if set(state) != set(criteria):
            raise HarnessError(
                f"the saved monitors are {sorted(state)}, this training has {sorted(criteria)}: "
                "the checkpoint is from another version or schedule; start the training afresh"
            )
        for rule in self.rules:
            rule.load_state_dict(state[rule.criterion])
