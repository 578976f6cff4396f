"""Made-up evidence of a graduation: small tables under the real matrix and rungs, and records for wanted scores."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.checks import MAIN_TRAININGS, Check, Checks
from harness.graduation.evidence import EVIDENCE_PATH, EvidenceTable, Table
from harness.graduation.ledger import Seal, seal
from harness.graduation.matrix import Bundle, Decision, decide_graduation
from harness.graduation.waivers import Waiver
from harness.records import Limits, Record, Status
from harness.thresholds import MetricLimits, Thresholds

MODEL = "GF-MH"
CATEGORY = {
    "G0": "stability", "G1": "stability", "G3": "stability", "S3": "stability", "D1": "stability",
    "STABILITY": "stability", "RESUME": "stability", "CANARY": "canary", "SCALING": "scaling", "RESOURCE": "resource",
    "NOTE": "none", "HYBRID": "none", "LONGER": "none",
}  # fmt: skip
HARD = ("G0", "G1", "G3", "S3", "RESUME")

# What each score needs of the metrics that its rungs name: score -> metric -> (value, low, high)
Numbers = Mapping[str, tuple[float, float, float]]
STABILITY: dict[int, dict[str, float]] = {
    0: {"non_finite": 1},
    1: {"spikes_per_1000": 3, "seed_sd": 0.08},
    2: {"spikes_per_1000": 1, "seed_sd": 0.04},
    3: {},
}
STEADY = {"non_finite": 0, "divergence": 0.1, "spikes_per_1000": 0, "unrecovered_spikes": 0, "seed_sd": 0.01,
          "clip_fraction": 0.05}  # fmt: skip
CANARY = {0: (0.45, 0.40, 0.50), 1: (0.74, 0.70, 0.78), 2: (0.84, 0.80, 0.88), 3: (0.93, 0.90, 0.95)}
SCALING = {0: 0.12, 1: 0.08, 2: 0.04, 3: 0.01}
RESOURCE = {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}

ANY = (float("-inf"), float("inf"))


def _limits(pass_band: tuple[float, float] = ANY, warn_band: tuple[float, float] = ANY) -> MetricLimits:
    return MetricLimits.model_validate(
        {
            "unit": "1",
            "direction": "band",
            "source": "made up",
            "calibrated": True,
            "pass": pass_band,
            "warn": warn_band,
        }
    )


@cache
def tables(scale: str = "3.5M", seeds: int = 3, cpu_ref: bool = True) -> tuple[EvidenceTable, Checks, Thresholds]:
    """The real matrix and rungs over a small set of checks."""
    raw = tomllib.loads(EVIDENCE_PATH.read_text(encoding="utf-8"))
    row = {"next": "8M", "seeds": seeds, "cpu_ref": cpu_ref, "demands": list(CATEGORY)}
    raw["scales"] = {scale: row}
    raw["pending"] = {}
    raw["gates"] = [{"id": "H6", "title": "sound", "checks": list(HARD), "scales": [scale]}]
    table = EvidenceTable(Table.model_validate(raw), "0" * 64, Path("evidence.toml"))
    checks = {
        name: Check.model_validate(
            {
                "id": name, "title": name, "claim": "c", "why": "w", "method": "m", "suite": "graduation",
                "file": f"test_{name.lower()}.py", "scales": (scale,), "category": category, "next": "n", "source": "s",
                "branches": "hybrid" if name == "HYBRID" else "any",
                "trainings": {"NOTE": [MAIN_TRAININGS], "LONGER": [MAIN_TRAININGS, "extended"]}.get(name, []),
                "seeds": "first" if name == "LONGER" else "all",
            }
        )
        for name, category in CATEGORY.items()
    }  # fmt: skip
    metrics: dict[str, dict[str, MetricLimits]] = {name: {"level_of": _limits((1, 9), (0.5, 9))} for name in CATEGORY}
    for rungs in table.table.rungs.values():
        for requirement in (each for rung in rungs for each in rung.requires if each.metric):
            metrics[requirement.check][requirement.metric] = _limits()
    return table, Checks(checks), Thresholds(metrics, "0" * 64, Path("thresholds.toml"))


@dataclass(frozen=True)
class Made:
    """Evidence to be decided on, one item a check."""

    records: tuple[Record, ...]
    scale: str = "3.5M"
    scope: str = "cuda"
    seeds: tuple[int, ...] = (0, 1, 2)
    branches: int = 2
    demanded_seeds: int = 3
    cpu_ref: bool = True
    unplanned: frozenset[str] = frozenset()
    unsealed: frozenset[str] = frozenset()
    waivers: tuple[Waiver, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    seals: Mapping[str, Seal] | None = None

    def bundle(self) -> Bundle:
        """As the decision takes it, sealed as it was measured."""
        planned = {node(name): name for name in CATEGORY if name not in self.unplanned}
        return Bundle(
            records=self.records,
            planned=planned,
            seals=sealed(self.records, planned, self.unsealed) if self.seals is None else self.seals,
            model=MODEL,
            scale=self.scale,
            scope=self.scope,
            seeds=self.seeds,
            branches=self.branches,
            waivers=self.waivers,
            **self.changes,
        )

    def decide(self) -> Decision:
        """The decision on it."""
        return decide_graduation(self.bundle(), *tables(self.scale, self.demanded_seeds, self.cpu_ref))

    def but(self, **changes: Any) -> "Made":
        """The same with something changed."""
        return replace(self, **changes)

    def after(self, records: "tuple[Record, ...] | list[Record]") -> "Made":
        """The same evidence with records that were changed after they were sealed."""
        return replace(self, seals=self.bundle().seals, records=tuple(records))


def node(check: str) -> str:
    """The item of a check."""
    return f"suites/graduation/test_{check.lower()}.py::test"


def sealed(
    records: "tuple[Record, ...]", planned: Mapping[str, str], unsealed: frozenset[str] = frozenset()
) -> dict[str, Seal]:
    """The seals of what each item reported."""
    return {
        nodeid: seal(nodeid, check, [record for record in records if record.nodeid == nodeid])
        for nodeid, check in planned.items()
        if check not in unsealed
    }


def record(check: str, metric: str, status: Status = Status.PASS, **fields: Any) -> Record:
    """A record of an item, with the limits that are in force."""
    limits = tables()[2].of(check).get(metric)
    threshold: Limits | None = limits.at("3.5M") if limits is not None and "value" in fields else None
    base = {"model": MODEL, "scale": "3.5M", "nodeid": node(check), "seeds": (0, 1, 2), "threshold": threshold}
    return Record(check=check, metric=metric, status=status, **{**base, **fields})


def ending(check: str, status: Status) -> Record:
    """A record that makes a check end so."""
    if status in (Status.WARN, Status.PASS):
        return record(check, "level_of", status, value=0.7 if status is Status.WARN else 2.0)
    if status is Status.FAIL:
        return record(check, "level_of", status, value=0.1)
    return record(check, "", status, note="made up")


def made(
    stability: int = 3,
    canary: int | None = 3,
    scaling: int | None = 2,
    resource: int | None = 2,
    statuses: Mapping[str, Status] | None = None,
    **changes: Any,
) -> Made:
    """Evidence that gives these scores (None: nothing was found out), with checks that end as given, else PASS."""
    ends = dict.fromkeys(CATEGORY, Status.PASS) | dict(statuses or {})
    records = [ending(name, status) for name, status in ends.items()]
    # a second claim that holds: what is left of a check when the record that decided it is lost
    judged = [name for name, status in ends.items() if status is not Status.NA]
    records += [record(name, "level_of", value=2.0, case="other") for name in judged]
    steady = STEADY | STABILITY[stability]
    records += [record("STABILITY", name, value=value) for name, value in steady.items()]
    records.append(record("RESUME", "level", value=2.0))
    if canary is None:
        records.append(ending("CANARY", Status.MISSING))
    else:
        value, low, high = CANARY[canary]
        records.append(record("CANARY", "macro_accuracy", value=value, ci=(low, high)))
        records.append(record("CANARY", "category_accuracy", value=value))
    if scaling is None:
        records.append(ending("SCALING", Status.MISSING))
    else:
        numbers = {"monotone": 1.0, "r_squared": 0.99, "interval_covers": 1.0, "gain_over_naive": 0.01}
        records += [record("SCALING", name, value=number) for name, number in numbers.items()]
        records.append(record("SCALING", "size_exponent", value=0.3, ci=(0.1, 0.5)))
        records.append(record("SCALING", "held_out_error", value=SCALING[scaling]))
    if resource is None:
        records.append(ending("RESOURCE", Status.INVALID))
    else:
        records.append(record("RESOURCE", "next_predictions", value=2.0))
        records.append(record("RESOURCE", "error", value=RESOURCE[resource]))
    return Made(tuple(records), **changes)
