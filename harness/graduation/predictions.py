"""Predictions in the store: made before what they predict is measured, hashed, dated, and never changed.

A number that is computed after the fact can always be made to fit. So a prediction is registered first, with everything
it was made from, and ``require_before`` refuses one that is younger than the run it speaks of. No torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.hashing import canonical_json, sha256_json
from harness.store import Store

KIND = "predictions"
FILE = "prediction.json"

# What two machines may differ in when they compute the same prediction from the same inputs
REPRODUCED_WITHIN = 1e-3


class PredictionError(HarnessError):
    """A prediction came too late, is no number, or contradicts what was registered. The message says what to do."""


@dataclass(frozen=True)
class Prediction:
    """What was predicted, and when.

    quantity    what will be measured, with its unit: ``loss of GF-MH at 3.5M, nats/token``
    value       the prediction; low and high: its 90 % interval
    sha256      of everything that was registered, the time included
    registered  ISO time (UTC, microseconds) of the first registration
    made_from   what it was computed from: hashes of runs, records or files
    """

    quantity: str
    value: float
    low: float
    high: float
    sha256: str
    registered: str
    made_from: tuple[str, ...]

    @property
    def short(self) -> str:
        """Hash and time, for a note beside the number."""
        return f"prediction {self.sha256[:12]}, registered {self.registered}"


def register(
    store: Store,
    quantity: str,
    fields: Mapping[str, Any],
    value: float,
    low: float,
    high: float,
    made_from: Sequence[str],
) -> Prediction:
    """Register a prediction; the same quantity, fields and origin give the entry that is already there, with its date.

    ``fields`` (JSON values) holds whatever else decides the number: sizes, settings, the hash of the source that
    computes it. Raises ``PredictionError`` when a number is not finite, the interval does not hold the value, or what
    was registered for the same inputs differs; ``StoreError`` when the entry is damaged.
    """
    if not all(map(math.isfinite, (value, low, high))) or not low <= value <= high:
        raise PredictionError(
            f"{quantity}: a prediction is a finite value inside a finite interval, got {value} in [{low}, {high}]"
        )
    key = {"quantity": quantity, "inputs": dict(fields), "made_from": list(made_from)}

    def build(directory: Path) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        content = {**key, "value": float(value), "low": float(low), "high": float(high), "registered": now}
        (directory / FILE).write_text(canonical_json(content), encoding="utf8")

    path = store.get_or_build(KIND, key, build).path / FILE
    found = _read(path)
    for name, new in (("value", value), ("low", low), ("high", high)):
        old = getattr(found, name)
        if not math.isclose(old, new, rel_tol=REPRODUCED_WITHIN, abs_tol=REPRODUCED_WITHIN):
            raise PredictionError(
                f"{quantity}: registered on {found.registered} with {name} {old:.9g}, and the same inputs now give "
                f"{new:.9g}; a prediction is never changed\n  what  {path}\n"
                f"  next  name what differs among its fields (such as the hash of the source that computes it)"
            )
    return found


def require_before(prediction: Prediction, began: datetime, what: str = "the run") -> None:
    """Refuse a prediction that was not registered before ``began`` (with a time zone). Raises ``PredictionError``."""
    assert began.tzinfo is not None, "a time without a zone cannot be compared"
    if datetime.fromisoformat(prediction.registered) >= began:
        raise PredictionError(
            f"{prediction.quantity}: registered on {prediction.registered}, but {what} began on "
            f"{began.isoformat(timespec='microseconds')}, before it: this predicts nothing"
        )


def _read(path: Path) -> Prediction:
    content = json.loads(path.read_text(encoding="utf8"))
    return Prediction(
        content["quantity"], content["value"], content["low"], content["high"], sha256_json(content),
        content["registered"], tuple(content["made_from"]),
    )  # fmt: skip
