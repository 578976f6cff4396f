"""SHS: what of the other state checks goes into the state-health score, and with which scales."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness.branch_health import layer_gate_saturation
from harness.collapse import Spreads
from harness.divergence import PositionGrowth
from harness.interaction import StateAblation
from harness.metrics.score import Scale, StateScore, subscore
from harness.state_probe import ModelSample
from harness.state_size import Magnitudes
from harness.step_growth import LayerSteps
from harness.thresholds import Thresholds

_UP, _DOWN = math.inf, -math.inf


@dataclass(frozen=True)
class Part:
    """One part of the score: the metric whose limits it is held against, and where it is ideal."""

    check: str
    metric: str
    scale: Scale


PARTS: Mapping[str, Part] = {
    # a state that has filled does not grow
    "size by position": Part("D1", "position_ratio", Scale((_DOWN, 1.0), log=True)),
    "size by step": Part("D1", "late_growth", Scale((_DOWN, 1.0), log=True)),
    "variation by position": Part("D1", "position_cv", Scale((_DOWN, 0.1))),
    "variation by step": Part("D1", "step_cv", Scale((_DOWN, 0.1))),
    "sensitivity": Part("D2", "sensitivity", Scale((0.05, _UP), log=True)),
    "directions": Part("D2", "directions", Scale((5.0, _UP), log=True)),
    "effective rank": Part("G3.5", "effective_rank", Scale((4.0, _UP), log=True)),
    "magnitude": Part("S1", "write_ratio", Scale((1.0, 1.0), log=True)),
    "gate saturation": Part("G3.5", "gate_saturation", Scale((_DOWN, 0.0))),
    "activity": Part("D3", "activity", Scale((1e-3, _UP), log=True)),
}
"""What the score is the least of. The limits are those of thresholds.toml; only the ideals are chosen here."""


@dataclass
class Readings:
    """The reading of each part, its worst place; what could not be read; and what a model does not have."""

    values: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    not_applicable: list[str] = field(default_factory=list)

    def take(self, part: str, values: Sequence[float], *, largest: bool, reason: str) -> None:
        """Keep the worst of ``values``; one that is NaN is the worst of all. None at all: missing, for that reason."""
        assert part in PARTS
        if not values:
            self.missing.append(f"{part}: {reason}")
        elif any(math.isnan(value) for value in values):
            self.values[part] = math.nan
        else:
            self.values[part] = max(values) if largest else min(values)


def readings(
    growth: PositionGrowth,
    layers: Sequence[LayerSteps],
    spreads: Spreads,
    sizes: Magnitudes,
    ablation: StateAblation,
    sample: ModelSample,
) -> Readings:
    """The worst reading of every part over layers, branches and heads, as the checks themselves judge it."""
    found = Readings()
    _read_positions(found, growth)
    no_log = "the log tells of no states"
    found.take("size by step", [layer.late_growth[0] for layer in layers], largest=True, reason=no_log)
    held = [layer.late_variation for layer in layers]
    short = "fewer than four looks at the states in the last fifth of the training"
    found.take("variation by step", [cv[0] for cv in held if cv is not None], largest=True, reason=short)
    found.take("sensitivity", [rho.value for rho in spreads.rho.values()], largest=False, reason="no state")
    found.take("directions", [s.directions.value for s in spreads.sites], largest=False, reason="no state")
    _read_ranks(found, spreads)
    _read_magnitudes(found, sizes)
    saturation = layer_gate_saturation(sample)
    if saturation:
        found.take("gate saturation", list(saturation.values()), largest=True, reason="")
    else:
        found.not_applicable.append("gate saturation (no mixing gate)")
    active = [ablation.effect(branch).kl.value for branch in ablation.branches]
    found.take("activity", active, largest=False, reason="no branch has a state that lasts")
    return found


def _read_positions(found: Readings, growth: PositionGrowth) -> None:
    if growth.not_measured:
        found.not_applicable.append(f"size and variation by position ({growth.not_measured})")
        return
    ratios = [site.ratios[site.worst_head].value for site in growth.sites]
    found.take("size by position", ratios, largest=True, reason="no state")
    settled = [cv.median for cv in (site.settled_median for site in growth.sites) if cv is not None]
    if not settled and any(site.settled_cv for site in growth.sites):
        found.not_applicable.append("variation by position (in no layer do half of the heads settle within the text)")
        return
    found.take("variation by position", settled, largest=True, reason="no decays are reported")


def _read_ranks(found: Readings, spreads: Spreads) -> None:
    ranks: dict[str, list[float]] = {}
    for site in spreads.sites:
        if site.rank is not None:
            ranks.setdefault(site.branch, []).append(site.rank)
    if not ranks:
        found.not_applicable.append("effective rank (no state is a matrix)")
        return
    # by branch, as G3.5 judges it
    found.take("effective rank", [median(layers) for layers in ranks.values()], largest=False, reason="")


def _read_magnitudes(found: Readings, sizes: Magnitudes) -> None:
    accumulated = [size for size in sizes.found if not size.cache]
    if not accumulated:
        found.not_applicable.append("magnitude (every state is a cache)")
        return
    if any(size.ratios is None for size in accumulated):
        found.missing.append("magnitude: the model reports no innovations of some state")
        return
    worst = [size.ratios[size.extreme_head] for size in accumulated if size.ratios]
    # furthest from 1, up or down: what is not positive is further than anything
    far = [abs(math.log(ratio)) if math.isfinite(ratio) and ratio > 0 else math.inf for ratio in worst]
    found.values["magnitude"] = worst[far.index(max(far))]


@dataclass(frozen=True)
class Scored:
    """The subscore of every reading, and the score made of them."""

    subscores: dict[str, float]
    total: StateScore


def score(values: Mapping[str, float], thresholds: Thresholds, scale: str) -> Scored:
    """Hold every reading against the limits in force at a scale."""
    subscores = {}
    for name, value in values.items():
        part = PARTS[name]
        subscores[name] = subscore(value, thresholds.find(part.check, part.metric).at(scale), part.scale)
    return Scored(subscores, StateScore.of(subscores))
