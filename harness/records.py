"""Records: what a check emits and the only thing a decision is made from. Versioned JSON, no torch."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

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


# Numbers and closed intervals as fields of what is written to JSON
_Written = float | Literal["nan", "inf", "-inf"]
JsonNumber = Annotated[
    float, BeforeValidator(decode_number), PlainSerializer(encode_number, return_type=_Written, when_used="json")
]
JsonBand = Annotated[
    tuple[float, float],
    BeforeValidator(decode_band),
    PlainSerializer(encode_band, return_type=list[_Written], when_used="json"),
]


class Limits(BaseModel):
    """The limits a record was judged by, as they stood in thresholds.toml. Bands are closed: ``(low, high)``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pass_band: JsonBand
    warn_band: JsonBand
    source: str
    calibrated: bool


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
    value: JsonNumber | None = None
    unit: str = ""
    direction: str = ""
    ci: JsonBand | None = None
    n: int | None = None
    n_clusters: int | None = None
    null_value: JsonNumber | None = None
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
    wall_s: JsonNumber | None = None
    info: bool = False
    note: str = ""
