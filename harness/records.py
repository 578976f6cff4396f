"""Records: what a check emits and the only thing a decision is made from. Versioned JSON, no torch."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer, field_validator

SCHEMA_VERSION = 1


class Status(StrEnum):
    """Status of a record. Only PASS counts as a pass; the last four are non-verdicts."""

    PASS = "PASS"  # noqa: S105  a status, no password
    WARN = "WARN"
    FAIL = "FAIL"
    MISSING = "MISSING"
    INVALID = "INVALID"
    UNSUPPORTED = "UNSUPPORTED"
    NA = "NA"


# Worst first: the status of a check is the worst of its records. UNSUPPORTED and NA yield to any verdict.
SEVERITY = (
    Status.FAIL,
    Status.INVALID,
    Status.MISSING,
    Status.WARN,
    Status.PASS,
    Status.UNSUPPORTED,
    Status.NA,
)


# A check whose prerequisite ended so is not run: its numbers would rest on sand.
BLOCKING = frozenset({Status.FAIL, Status.INVALID, Status.MISSING})


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of some statuses; MISSING when there is none."""
    return min(statuses, key=SEVERITY.index, default=Status.MISSING)


def status_of(records: "Iterable[Record]") -> Status:
    """The status of a set of records: the worst; descriptive ones do not count, so MISSING when nothing was judged."""
    return worst(record.status for record in records if not record.info)


def encode_number(value: float | None) -> float | str | None:
    """JSON has no NaN: non-finite numbers become the strings ``nan``, ``inf`` and ``-inf``."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def decode_number(value: Any) -> Any:
    """The inverse of ``encode_number``; anything else passes through to the validator."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def encode_band(band: tuple[float, float]) -> list[float | str | None]:
    """A closed interval as JSON: ``[0.3, "inf"]``."""
    return [encode_number(end) for end in band]


def decode_band(band: Any) -> Any:
    """The inverse of ``encode_band``; anything else passes through to the validator."""
    return tuple(decode_number(end) for end in band) if isinstance(band, list | tuple) else band


class Limits(BaseModel):
    """The limits a record was judged by, as they stood in thresholds.toml. Bands are closed: ``(low, high)``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pass_band: tuple[float, float]
    warn_band: tuple[float, float]
    source: str
    calibrated: bool

    @field_serializer("pass_band", "warn_band", when_used="json")
    def _encode(self, band: tuple[float, float]) -> list[float | str | None]:
        return encode_band(band)

    @field_validator("pass_band", "warn_band", mode="before")
    @classmethod
    def _decode(cls, band: Any) -> Any:
        return decode_band(band)


class Record(BaseModel):
    """One measurement and its status: one record a seed, and the aggregate, whose ``seeds`` lists all.

    value, ci, null_value are in ``unit``; ci is a 90 % two-sided interval. n counts windows, n_clusters the documents
    they come from. wall_s is the time since the item's previous record (for the first: since its setup began).
    info marks a number that is shown and never counted; its status is NA. kat says how many known-answer tests of
    the check passed in the process that measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    metric: str
    status: Status
    case: str = ""
    layer: int | None = None
    branch: str | None = None
    value: float | None = None
    unit: str = ""
    direction: str = ""
    ci: tuple[float, float] | None = None
    n: int | None = None
    n_clusters: int | None = None
    null_value: float | None = None
    seeds: tuple[int, ...] = ()
    nodeid: str = ""
    threshold: Limits | None = None
    model: str = ""
    scale: str = ""
    step: int | None = None
    checkpoint_sha256: str = ""
    config_sha256: str = ""
    corpus_sha256: str = ""
    tokenizer_sha256: str = ""
    split: str = ""
    dtype: str = ""
    device: str = ""
    backend: str = ""
    kat: str = ""
    wall_s: float | None = None
    info: bool = False
    note: str = ""

    @field_serializer("value", "null_value", "wall_s", when_used="json")
    def _encode(self, value: float | None) -> float | str | None:
        return encode_number(value)

    @field_serializer("ci", when_used="json")
    def _encode_ci(self, value: tuple[float, float] | None) -> list[float | str | None] | None:
        return None if value is None else encode_band(value)

    @field_validator("value", "null_value", "wall_s", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        return decode_number(value)

    @field_validator("ci", mode="before")
    @classmethod
    def _decode_ci(cls, value: Any) -> Any:
        return decode_band(value)
