"""Limits of every metric, read from thresholds.toml, and the one rule that turns a measurement into a status."""

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from harness.errors import HarnessError, did_you_mean
from harness.records import Limits, Status

THRESHOLDS_PATH = Path(__file__).with_name("thresholds.toml")

Band = tuple[float, float]
Direction = Literal["higher", "lower", "band"]


class ThresholdError(HarnessError):
    """thresholds.toml is malformed, or has no limits for a metric that a check judges."""


class Bands(BaseModel):
    """A closed pass band inside a closed warn band; outside the warn band is FAIL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pass_band: Band = Field(alias="pass")
    warn_band: Band = Field(alias="warn")

    @model_validator(mode="after")
    def _are_nested_intervals(self) -> Self:
        for name, (low, high) in (("pass", self.pass_band), ("warn", self.warn_band)):
            if math.isnan(low) or math.isnan(high) or low > high:
                raise ValueError(f"{name} = [{low}, {high}] is no interval; give [low, high], inf allowed")
        if not (self.warn_band[0] <= self.pass_band[0] and self.pass_band[1] <= self.warn_band[1]):
            raise ValueError(
                f"pass {list(self.pass_band)} lies outside warn {list(self.warn_band)}; warn contains pass"
            )
        return self


class MetricLimits(Bands):
    """The limits of one metric of one check.

    direction  ``higher``: more is better, both bands share their upper end; ``lower``: the reverse; ``band``: neither
    per_scale  bands that replace these at a scale
    source     where the numbers come from; calibrated: a healthy and a broken reference were measured against them
    """

    unit: str
    direction: Direction
    source: str = Field(min_length=1)
    calibrated: bool
    note: str = ""
    per_scale: dict[str, Bands] = {}

    @model_validator(mode="after")
    def _agree_with_direction(self) -> Self:
        shared_end = {"higher": 1, "lower": 0}.get(self.direction)
        if shared_end is None:
            return self
        scales: list[Bands] = [self, *self.per_scale.values()]
        for bands in scales:
            if bands.pass_band[shared_end] != bands.warn_band[shared_end]:
                raise ValueError(
                    f"direction {self.direction!r} needs pass and warn to share their "
                    f"{('lower', 'upper')[shared_end]} end; use direction = 'band' otherwise"
                )
        return self

    def at(self, scale: str) -> Limits:
        """The limits in force at a scale, as a record carries them."""
        bands: Bands = self.per_scale.get(scale, self)
        return Limits(
            pass_band=bands.pass_band, warn_band=bands.warn_band, source=self.source, calibrated=self.calibrated
        )


@dataclass(frozen=True)
class Thresholds:
    """The whole table ``checks[id][metric]`` and the SHA-256 of the file it came from."""

    checks: Mapping[str, Mapping[str, MetricLimits]]
    sha256: str
    path: Path

    def of(self, check: str) -> Mapping[str, MetricLimits]:
        """The metrics of a check that have limits, by name; empty for a check of exact claims only."""
        return self.checks.get(check, {})

    def find(self, check: str, metric: str) -> MetricLimits:
        """The limits of one metric. Raises ThresholdError when there are none."""
        metrics = self.of(check)
        if metric not in metrics:
            raise ThresholdError(
                f"{self.path.name} has no limits [{check}.{metric}]; {did_you_mean(metric, metrics)}. "
                "Add the limits with their source, or record the number with judge.info"
            )
        return metrics[metric]


def load_thresholds(path: Path = THRESHOLDS_PATH) -> Thresholds:
    """Read and validate a table of limits. Raises ThresholdError that names the entry at fault."""
    content = path.read_bytes()
    try:
        raw = tomllib.loads(content.decode())
        checks = TypeAdapter(dict[str, dict[str, MetricLimits]]).validate_python(raw)
    except tomllib.TOMLDecodeError as error:
        raise ThresholdError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise ThresholdError(f"{path}: {explain_validation(error)}") from error
    return Thresholds(checks, hashlib.sha256(content).hexdigest(), path)


def explain_validation(error: ValidationError) -> str:
    """The faults of a table, one line each: ``[G2.entropy.warn] Field required``."""
    return "\n".join(
        f"[{'.'.join(str(part) for part in fault['loc'])}] {fault['msg'].removeprefix('Value error, ')}"
        for fault in error.errors()
    )


def judge_value(limits: Limits, value: float, ci: Band | None = None) -> Status:
    """The status of a measurement.

    With an interval: PASS when it lies wholly inside the pass band, FAIL when it has no point in common with the warn
    band, else WARN (borderline or underpowered). Without one the point decides. A value or an interval end that is
    NaN, and an infinite value, is FAIL. Raises ValueError for an interval whose ends are swapped.
    """
    if not math.isfinite(value):
        return Status.FAIL
    low, high = ci if ci is not None else (value, value)
    if math.isnan(low) or math.isnan(high):
        return Status.FAIL
    if low > high:
        raise ValueError(f"interval [{low}, {high}] has its ends swapped; give (low, high)")
    if limits.pass_band[0] <= low and high <= limits.pass_band[1]:
        return Status.PASS
    if high < limits.warn_band[0] or low > limits.warn_band[1]:
        return Status.FAIL
    return Status.WARN


def margin(limits: Limits, value: float, ci: Band | None = None, direction: str = "band") -> float:
    """Distance from the measurement to the nearest end of the pass band, in the unit of the value.

    Positive inside, negative outside; with an interval its worse end counts. Where more is better (``higher``) or
    worse (``lower``) only the end that can be missed counts, unless the measurement lies beyond the other one. NaN
    when the value is not finite; infinite when the pass band is unbounded.
    """
    if not math.isfinite(value):
        return math.nan
    low, high = ci if ci is not None else (value, value)
    above, below = low - limits.pass_band[0], limits.pass_band[1] - high
    if direction == "higher" and below >= 0:
        return above
    if direction == "lower" and above >= 0:
        return below
    return min(above, below)
