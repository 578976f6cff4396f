"""EXTENDED: what a longer training did to the health of the states, by the limits of the checks that judge it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.branch_health import layer_gate_saturation, state_health
from harness.collapse import Spreads
from harness.records import Limits, Status
from harness.state_probe import ModelSample
from harness.state_size import Magnitudes
from harness.step_growth import LayerSteps
from harness.thresholds import judge_value

LimitsOf = Callable[[str, str], Limits]
"""The limits in force for a check's metric."""

_ORDER = (Status.PASS, Status.WARN, Status.FAIL)


@dataclass(frozen=True)
class Reading:
    """One number that another check judges: the check, its metric, the place, and the value with its interval."""

    check: str
    metric: str
    site: str
    value: float
    ci: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What it is a reading of: two trainings are compared name by name."""
        return f"{self.check} {self.metric}, {self.site}"


@dataclass(frozen=True)
class StateReadings:
    """All readings of the states of one model."""

    found: list[Reading]


@dataclass(frozen=True)
class Worsening:
    """The readings whose status fell, each with both values and statuses, and how many were compared."""

    to_warn: list[str]
    to_fail: list[str]
    compared: int


def state_readings(sample: ModelSample, spreads: Spreads, sizes: Magnitudes, seed: int) -> StateReadings:
    """What G3.5, D2 and S1 judge of a model's states, place by place; ``seed`` is that of the intervals.

    A reading that the model cannot give (no innovations, no matrices, no gate) is left out.
    """
    found = []
    for health in state_health(sample, seed):
        rho = health.sensitivity
        found.append(Reading("G3.5", "input_sensitivity", health.branch, rho.value, rho.ci))
        if health.motion is not None:
            found.append(Reading("G3.5", "state_motion", health.branch, health.motion))
        if health.effective_rank is not None:
            found.append(Reading("G3.5", "effective_rank", health.branch, health.effective_rank))
    for layer, saturation in layer_gate_saturation(sample).items():
        found.append(Reading("G3.5", "gate_saturation", f"layer {layer}", saturation))
    for branch, rho in spreads.rho.items():
        found.append(Reading("D2", "sensitivity", branch, rho.value, rho.ci))
    for spread in spreads.sites:
        directions = spread.directions
        site = f"layer {spread.layer} {spread.branch}"
        found.append(Reading("D2", "directions", site, directions.value, directions.ci))
    for size in sizes.found:
        site = f"layer {size.layer} {size.branch}.{size.kind} after {size.position} tokens"
        found.append(Reading("S1", "non_finite_entries", site, size.non_finite))
        found.append(Reading("S1", "zero_heads", site, size.zero_heads))
        found.append(Reading("S1", "headroom", site, size.headroom))
        if size.ratios is not None:
            found.append(Reading("S1", "write_ratio", site, size.ratios[size.extreme_head]))
    return StateReadings(found)


def log_readings(layers: Sequence[LayerSteps], severity: Mapping[str, tuple[int, str]]) -> list[Reading]:
    """What D2 and STOP read off the log of a training: sensitivity kept along it, and the criteria that were met."""
    kept = [
        Reading("D2", "kept_sensitivity", f"layer {layer.layer} {layer.state}", layer.kept_sensitivity)
        for layer in layers
    ]
    return kept + [Reading("STOP", "severity", criterion, level) for criterion, (level, _) in severity.items()]


def worsening(before: Iterable[Reading], after: Iterable[Reading], limits_of: LimitsOf) -> Worsening:
    """The readings that stand worse ``after`` than ``before``, by the limits of the checks they come from.

    A reading that is PASS before and WARN after has worsened to WARN, whatever is FAIL after and was not before, to
    FAIL. What has no counterpart before is held against PASS: a new reading has nothing to excuse it; one that is gone
    is worsened to FAIL, since what can no longer be read may not pass for healthy.
    """
    old, new = _by_name(before), _by_name(after)

    def status(reading: Reading) -> Status:
        return judge_value(limits_of(reading.check, reading.metric), reading.value, reading.ci)

    to_warn: list[str] = []
    to_fail = [f"{name}: no longer read" for name in old if name not in new]
    for name, reading in new.items():
        was, now = (status(old[name]) if name in old else Status.PASS), status(reading)
        if _ORDER.index(now) <= _ORDER.index(was):
            continue
        first = f"{old[name].value:.4g} ({was})" if name in old else "not read before"
        (to_fail if now is Status.FAIL else to_warn).append(f"{name}: {first} -> {reading.value:.4g} ({now})")
    return Worsening(to_warn, to_fail, len(new))


def _by_name(readings: Iterable[Reading]) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for reading in readings:
        assert reading.name not in found, f"two readings of {reading.name}"
        found[reading.name] = reading
    return found
