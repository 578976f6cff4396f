"""``metrics.jsonl``: what happened in a training, one JSON object a line, in order.

    header      settings and parameter counts, first line
    step        one update: loss_nats before it, lr, gradient norms before clipping; ``step`` counts from 1
    eval        validation on the fixed windows after ``step`` updates; the first is at step 0
    probe       a look inside the model after ``step`` updates: its states, writes and gates (harness.probe_row)
    final_eval  validation on the large fixed set after the last update
    event       a STOP or an ALERT of a monitor

Numbers that are not finite are the strings ``nan``, ``inf`` and ``-inf``. No torch.

``began.txt`` beside it holds the time at which the training began. It is kept apart, so that equal trainings have
equal logs.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records import decode_number, encode_number

FILE, BEGAN = "metrics.jsonl", "began.txt"


class RunLogError(HarnessError):
    """A log is damaged or does not belong to the state that is to be resumed."""


class RunLog:
    """The log of one training, open for appending.

    ``position`` says how far it has been written and hashes that part, so that a resumed training can cut off what
    was logged after its checkpoint and refuse a log that is not its own.
    """

    def __init__(self, directory: Path, position: Mapping[str, Any] | None = None) -> None:
        path = directory / FILE
        if position is None:
            (directory / BEGAN).write_text(datetime.now(UTC).isoformat(timespec="microseconds"), encoding="utf8")
        self._hash = hashlib.sha256()
        kept = b"" if position is None else _kept_part(path, position)
        self._hash.update(kept)
        self._handle = path.open("r+b" if kept else "wb")
        self._handle.truncate(len(kept))
        self._handle.seek(len(kept))

    @classmethod
    def taking_over(
        cls, directory: Path, header: Mapping[str, Any], other: Path, position: Mapping[str, Any]
    ) -> "RunLog":
        """A new log with its own header and the rows that the log in ``other`` had at a position of its own.

        They were logged when that training ran, so this one then began when that one did. Raises ``RunLogError``.
        """
        _, _, rows = _kept_part(other / FILE, position).partition(b"\n")
        began = read_beginning(other)
        log = cls(directory)
        (directory / BEGAN).write_text(began.isoformat(timespec="microseconds"), encoding="utf8")
        log.write(header)
        log._append(rows)
        return log

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it reaches the disk at the next ``sync`` at the latest."""
        self._append(json.dumps(_encode(row), separators=(",", ":"), allow_nan=False).encode() + b"\n")

    def _append(self, lines: bytes) -> None:
        self._hash.update(lines)
        self._handle.write(lines)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())

    @property
    def position(self) -> dict[str, Any]:
        """Length and hash of what was written so far."""
        return {"bytes": self._handle.tell(), "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Write out and close."""
        self._handle.close()


def read_rows(directory: Path, kind: str = "") -> list[dict[str, Any]]:
    """The rows of one kind (of all kinds, if none is named) in order, non-finite numbers as floats.

    Raises ``RunLogError``.
    """
    path = directory / FILE
    rows = []
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except FileNotFoundError as error:
        raise RunLogError(f"{path}: there is no log of a training here") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunLogError(f"{path}, line {number}: damaged ({error}); delete {directory} and run again") from error
        if kind in ("", row["kind"]):
            rows.append({key: _decode(value) for key, value in row.items()})
    return rows


def rows_before(directory: Path, position: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All rows that a log had at a position of its own. Raises ``RunLogError``."""
    lines = _kept_part(directory / FILE, position).splitlines()
    return [{key: _decode(value) for key, value in json.loads(line).items()} for line in lines]


def read_header(directory: Path) -> dict[str, Any]:
    """The first row of a log. Raises ``RunLogError``."""
    path = directory / FILE
    try:
        with path.open(encoding="utf8") as handle:
            row = json.loads(handle.readline())
        return {key: _decode(value) for key, value in row.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RunLogError(f"{path}: the log of a training has no header here ({error}); train it again") from error


def read_beginning(directory: Path) -> datetime:
    """When the training in a directory began; one that was resumed began once. Raises ``RunLogError``."""
    path = directory / BEGAN
    try:
        began = datetime.fromisoformat(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise RunLogError(f"{path}: does not say when the training began ({error}); train it again") from error
    if began.tzinfo is None:
        raise RunLogError(f"{path}: {began} has no time zone, so it cannot be compared; train it again")
    return began


def _kept_part(path: Path, position: Mapping[str, Any]) -> bytes:
    length = int(position["bytes"])
    kept = path.read_bytes()[:length] if path.is_file() else b""
    if len(kept) != length or hashlib.sha256(kept).hexdigest() != position["sha256"]:
        raise RunLogError(
            f"{path}: does not match the checkpoint beside it (its first {length} bytes were expected to have sha256 "
            f"{position['sha256']}); delete {path.parent} and run again: the training starts from the beginning"
        )
    return kept


def _encode(value: Any) -> Any:
    if isinstance(value, float):
        return encode_number(value)
    if isinstance(value, Mapping):
        return {key: _encode(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_encode(inner) for inner in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(inner) for key, inner in value.items()}
    return [_decode(inner) for inner in value] if isinstance(value, list) else decode_number(value)
