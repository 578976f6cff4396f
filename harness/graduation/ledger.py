"""Seals: what an item reported, counted and hashed where it was measured, so that a lost or changed record is seen."""

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from harness.records import Record


class Seal(BaseModel):
    """How many records an item left, and the SHA-256 of them in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodeid: str
    check: str
    records: int
    sha256: str


def seal(nodeid: str, check: str, records: Sequence[Record]) -> Seal:
    """The seal of an item's records."""
    return Seal(nodeid=nodeid, check=check, records=len(records), sha256=_digest(records))


def broken(given: Seal, records: Sequence[Record]) -> str | None:
    """Why these are not the records that were sealed; None when they are."""
    if len(records) != given.records:
        return f"{given.nodeid} reported {given.records} records, {len(records)} are here"
    if _digest(records) != given.sha256:
        return f"the records of {given.nodeid} are not those that it reported (their hash differs)"
    return None


def _digest(records: Sequence[Record]) -> str:
    # the order in which an item's records arrive is not evidence
    lines = sorted(record.model_dump_json() for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
