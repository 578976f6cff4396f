"""Waivers: a named person takes responsibility, until a day, for a check that FAILs. Never a way to GO.

A file in TOML, one table a waiver::

    [[waivers]]
    check = "D2"
    owner = "Ada Lovelace"
    reason = "the probe set has one topic only; repeated by hand on 2,000 documents"
    expires = 2027-01-31

A waived FAIL counts as WARN, and the verdict is CAUTION at best. What is missing or invalid cannot be waived.
"""

import tomllib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import HarnessError, did_you_mean
from harness.graduation.evidence import EvidenceTable
from harness.thresholds import explain_validation


class WaiverError(HarnessError):
    """The file of waivers cannot be read, or one of them is not in force."""


class Waiver(BaseModel):
    """One waiver. expires is the last day on which it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    owner: str = Field(min_length=2, pattern=r"\S")
    reason: str = Field(min_length=10, pattern=r"\S")
    expires: date


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    waivers: tuple[Waiver, ...]


def load_waivers(path: Path, table: EvidenceTable, scale: str, today: date) -> tuple[Waiver, ...]:
    """Read the waivers of a decision.

    Raises WaiverError for a file that cannot be read, for an expired waiver, for two of one check, and for a check
    that this scale does not demand.
    """
    try:
        waivers = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).waivers
    except OSError as error:
        raise WaiverError(f"--waivers {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WaiverError(f"--waivers {path}: not TOML: {error}") from error
    except ValidationError as error:
        raise WaiverError(
            f"--waivers {path}: {explain_validation(error)}\n"
            "a waiver holds check, owner, reason (10 characters at least) and expires (a date)"
        ) from error
    demands = table.scale(scale).demands
    for waiver in waivers:
        if waiver.check not in demands:
            raise WaiverError(
                f"--waivers {path}: {scale} demands no check {waiver.check!r}; {did_you_mean(waiver.check, demands)}"
            )
        if waiver.expires < today:
            raise WaiverError(
                f"--waivers {path}: the waiver of {waiver.check} by {waiver.owner} expired on {waiver.expires}; "
                "renew it with a new reason, or take it out"
            )
    twice = duplicates([waiver.check for waiver in waivers])
    if twice:
        raise WaiverError(f"--waivers {path}: {twice[0]} is waived twice; leave one")
    return waivers


def duplicates(names: Sequence[str]) -> list[str]:
    """The names that come more than once."""
    return sorted({name for name in names if names.count(name) > 1})
