"""``judge``: the only way a check says what it found. Every call leaves one record on the item."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import pytest

from harness.checks import Check
from harness.plugin.settings import Settings
from harness.records import Record, Status, status_of
from harness.thresholds import Thresholds, judge_value

RECORD = "groundthink.record"
SEAL = "groundthink.seal"


class NonVerdictError(Exception):
    """Ends a check that can give no verdict. Its record is already on the item."""


@dataclass(frozen=True)
class Provenance:
    """What the records of an item share: which weights, on which data, computed how."""

    step: int | None = None
    checkpoint_sha256: str = ""
    config_sha256: str = ""
    corpus_sha256: str = ""
    tokenizer_sha256: str = ""
    split: str = ""
    dtype: str = ""
    backend: str = ""


@dataclass
class Evidence:
    """The records of one item, and what is common to them."""

    item: pytest.Item
    check: Check
    settings: Settings
    thresholds: Thresholds
    records: list[Record] = field(default_factory=list)
    provenance: Provenance = field(default_factory=Provenance)
    kat: str = ""
    remark: str = ""
    _last: float = field(default_factory=time.perf_counter)

    @property
    def status(self) -> Status:
        """The worst of the records; MISSING when nothing was judged."""
        return status_of(self.records)

    def add(self, metric: str, status: Status, note: str = "", **fields: Any) -> Record:
        """Make a record and put it on the item, as text: anything else may kill an xdist worker."""
        now = time.perf_counter()
        shared = {name: value for name, value in vars(self.provenance).items() if fields.get(name) in (None, "")}
        record = Record(
            check=self.check.id,
            metric=metric,
            status=status,
            note="; ".join(part for part in (note, self.remark) if part),
            nodeid=self.item.nodeid,
            model=self.settings.model,
            scale=self.settings.scale,
            device=self.settings.device,
            kat=self.kat,
            wall_s=now - self._last,
            **{**fields, **shared},
        )
        self._last = now
        self.records.append(record)
        self.item.user_properties.append((RECORD, record.model_dump_json()))
        return record


EVIDENCE = pytest.StashKey[Evidence]()


class Judge:
    """Records what a check measured and, by the limits of thresholds.toml, whether that is good enough.

    A FAIL does not end the test: everything a check measures is recorded, and the worst record decides the outcome.
    """

    def __init__(self, evidence: Evidence):
        self._evidence = evidence

    def __call__(
        self,
        metric: str,
        value: Any,
        *,
        case: str = "",
        layer: int | None = None,
        branch: str | None = None,
        ci: Sequence[Any] | None = None,
        n: int | None = None,
        n_clusters: int | None = None,
        null_value: Any = None,
        seed: int | Sequence[int] | None = None,
        step: int | None = None,
        checkpoint_sha256: str = "",
        split: str = "",
        note: str = "",
    ) -> Status:
        """Judge a number by the limits of this check's metric.

        value may be any scalar that ``float()`` takes (a 0-d tensor, a numpy scalar); ci is a 90 % interval (low,
        high); n counts windows, n_clusters documents; seed is the one measured, or all behind an aggregate (default:
        every seed of the run). Raises ThresholdError when the metric has no limits, TypeError for what is no number.
        """
        evidence = self._evidence
        limits = evidence.thresholds.find(evidence.check.id, metric)
        number, interval = as_number(value, metric), _as_interval(ci, metric)
        in_force = limits.at(evidence.settings.scale)
        record = evidence.add(
            metric,
            judge_value(in_force, number, interval),
            note,
            value=number,
            ci=interval,
            threshold=in_force,
            unit=limits.unit,
            direction=limits.direction,
            case=case,
            layer=layer,
            branch=branch,
            n=n,
            n_clusters=n_clusters,
            null_value=None if null_value is None else as_number(null_value, metric),
            seeds=self._seeds(seed),
            step=step,
            checkpoint_sha256=checkpoint_sha256,
            split=split,
        )
        return record.status

    def info(
        self,
        metric: str,
        value: Any,
        *,
        unit: str = "1",
        case: str = "",
        layer: int | None = None,
        branch: str | None = None,
        ci: Sequence[Any] | None = None,
        n: int | None = None,
        n_clusters: int | None = None,
        null_value: Any = None,
        seed: int | Sequence[int] | None = None,
        step: int | None = None,
        checkpoint_sha256: str = "",
        split: str = "",
        note: str = "",
    ) -> None:
        """Record a number that is shown and never judged. Raises TypeError for what is no number."""
        self._evidence.add(
            metric,
            Status.NA,
            note,
            info=True,
            value=as_number(value, metric),
            ci=_as_interval(ci, metric),
            unit=unit,
            case=case,
            layer=layer,
            branch=branch,
            n=n,
            n_clusters=n_clusters,
            null_value=None if null_value is None else as_number(null_value, metric),
            seeds=self._seeds(seed),
            step=step,
            checkpoint_sha256=checkpoint_sha256,
            split=split,
        )

    def holds(
        self,
        claim: str,
        ok: Any,
        *,
        value: Any = None,
        unit: str = "1",
        case: str = "",
        layer: int | None = None,
        branch: str | None = None,
        seed: int | Sequence[int] | None = None,
        step: int | None = None,
        note: str = "",
    ) -> Status:
        """Record an exact claim: PASS when it holds, FAIL when not. value is what was seen, for the reader.

        Raises TypeError unless ``ok`` is a truth value: a number would hide a comparison that was forgotten.
        """
        record = self._evidence.add(
            claim,
            Status.PASS if _as_truth(ok, claim) else Status.FAIL,
            note,
            value=None if value is None else as_number(value, claim),
            unit="" if value is None else unit,
            case=case,
            layer=layer,
            branch=branch,
            seeds=self._seeds(seed),
            step=step,
        )
        return record.status

    def demands(self, metric: str) -> bool:
        """Whether a metric can FAIL at this scale. False where its warn band admits any number: it is shown there."""
        evidence = self._evidence
        limits = evidence.thresholds.find(evidence.check.id, metric).at(evidence.settings.scale)
        return limits.warn_band != (-math.inf, math.inf)

    def missing(self, reason: str) -> NoReturn:
        """End the check: evidence that it needs does not exist (a hook the model lacks, a run that is not there)."""
        self._end(Status.MISSING, reason)

    def invalid(self, reason: str) -> NoReturn:
        """End the check: a precondition of the measurement failed, so its number would mean nothing."""
        self._end(Status.INVALID, reason)

    def unsupported(self, reason: str) -> NoReturn:
        """End the check: this device cannot run it."""
        self._end(Status.UNSUPPORTED, reason)

    def na(self, reason: str) -> NoReturn:
        """End the check: its claim does not apply to this subject, as declared before the run."""
        self._end(Status.NA, reason)

    def provenance(
        self,
        *,
        step: int | None = None,
        checkpoint_sha256: str = "",
        config_sha256: str = "",
        corpus_sha256: str = "",
        tokenizer_sha256: str = "",
        split: str = "",
        dtype: str = "",
        backend: str = "",
    ) -> None:
        """Say once what the records that follow were measured on; what is left out stays as it was."""
        given = {name: value for name, value in locals().items() if name != "self" and value not in (None, "")}
        self._evidence.provenance = replace(self._evidence.provenance, **given)

    def _end(self, status: Status, reason: str) -> NoReturn:
        self._evidence.add("", status, reason)
        raise NonVerdictError(reason)

    def _seeds(self, seed: int | Sequence[int] | None) -> tuple[int, ...]:
        if seed is None:
            return self._evidence.settings.seeds
        return (seed,) if isinstance(seed, int) else tuple(seed)


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """Judge, record and end the check this test measures."""
    assert EVIDENCE in request.node.stash, "judge serves checks: mark the test with @pytest.mark.check('ID')"
    return Judge(request.node.stash[EVIDENCE])


def as_number(value: Any, metric: str) -> float:
    """A scalar as a float. Raises TypeError for text, truth values, None, and whatever holds more than one number."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0:
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise TypeError(
            f"{metric}: {type(value).__name__}{shape} is no number; reduce it to a scalar, or use judge.holds"
        )
    return float(value)


def _as_interval(ci: Sequence[Any] | None, metric: str) -> tuple[float, float] | None:
    if ci is None:
        return None
    if len(ci) != 2:
        raise TypeError(f"{metric}: an interval is (low, high), not {len(ci)} numbers")
    return as_number(ci[0], metric), as_number(ci[1], metric)


def _as_truth(ok: Any, claim: str) -> bool:
    plain = ok.item() if hasattr(ok, "item") and getattr(ok, "ndim", 0) == 0 else ok
    if not isinstance(plain, bool):
        raise TypeError(f"{claim}: judge.holds takes a truth value, not {type(ok).__name__}; write the comparison out")
    return plain
