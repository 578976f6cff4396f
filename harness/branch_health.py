"""From samples of states and writes to one set of numbers a branch: what G3.5 and G4 judge."""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from harness.metrics.balance import activation_shares
from harness.metrics.intervals import Interval, bootstrap_ratio, pooled
from harness.metrics.spectrum import effective_rank, spectrum_null, top_share
from harness.metrics.state import (
    DecaySaturation,
    decay_saturation,
    effective_decay,
    gate_saturation,
    input_sensitivity,
    rms,
    timescale,
)
from harness.state_probe import ModelSample

# A state is FROZEN when both its innovation and its dependence on the input are below these: docs/metrics.md, G3.5
FROZEN_INNOVATION, FROZEN_SENSITIVITY = 1e-3, 1e-2


@dataclass(frozen=True)
class StateHealth:
    """The LONG state of one branch over all layers.

    innovation   median of ||S_t - A_t S_{t-1}|| / ||S_t||; None when the model does not report it
    sensitivity  rho = E||S - S_bar||^2 / E||S||^2 at the end of the window, with its interval over documents
    motion       the larger of innovation / 1e-3 and rho / 1e-2: below 1 the state is frozen
    timescale    tokens until the median head has decayed to 1/e
    decays       shares of decays that keep next to nothing and next to everything; None when not reported
    effective_rank, top5_share  median over heads, layers and windows; None for states that are no matrices
    null_*       the same of Gaussian noise
    """

    branch: str
    sensitivity: Interval
    innovation: float | None = None
    timescale: float | None = None
    decays: DecaySaturation | None = None
    effective_rank: float | None = None
    null_rank: float | None = None
    top5_share: float | None = None
    null_top5_share: float | None = None

    @property
    def motion(self) -> float | None:
        """See the class."""
        if self.innovation is None:
            return None
        return max(self.innovation / FROZEN_INNOVATION, self.sensitivity.value / FROZEN_SENSITIVITY)


@dataclass(frozen=True)
class WriteHealth:
    """What one branch of a hybrid adds to the residual stream, over all layers.

    sensitivity   rho of the writes at fixed positions
    share         type A share, layers pooled; layer_shares has it layer by layer
    """

    branch: str
    sensitivity: Interval
    share: Interval
    layer_shares: dict[int, float]


def state_health(sample: ModelSample, seed: int) -> list[StateHealth]:
    """The health of every branch's state; ``seed`` is that of the intervals."""
    return [_state_health(sample, branch, seed) for branch in sample.branch_names]


def _state_health(sample: ModelSample, branch: str, seed: int) -> StateHealth:
    sites = [s for (_, name), s in sorted(sample.branches.items()) if name == branch]
    states = [tensor for site in sites for tensor in site.state.values()]
    rho = pooled([input_sensitivity(state, sample.documents) for state in states])
    innovations = torch.cat([site.innovations.flatten() for site in sites])
    health: dict[str, Any] = {"branch": branch, "sensitivity": bootstrap_ratio(rho, seed=seed)}
    if len(innovations):
        middle = innovations.median()
        health["innovation"] = float(middle)
        health["timescale"] = float(timescale(effective_decay(middle)))
    decays = torch.cat([site.decays for site in sites])
    if len(decays):
        health["decays"] = decay_saturation(decays)
    matrices = [state for state in states if state.ndim >= 4]
    if matrices:
        rows, columns = matrices[0].shape[-2:]
        null = spectrum_null(rows, columns)
        health["effective_rank"] = median(float(effective_rank(m).median()) for m in matrices)
        health["top5_share"] = median(float(top_share(m).median()) for m in matrices)
        health["null_rank"], health["null_top5_share"] = null.effective_rank, null.top5_share
    return StateHealth(**health)


def state_sensitivities(sample: ModelSample, seed: int) -> dict[str, Interval]:
    """The dependence of each branch's LONG state on the input, layers pooled; ``seed`` is that of the intervals."""
    return {
        branch: bootstrap_ratio(
            pooled([input_sensitivity(tensor, sample.documents) for tensor in _states_of(sample, branch)]), seed=seed
        )
        for branch in sample.branch_names
    }


def raw_rms_ratio(sample: ModelSample) -> float:
    """RMS of all entries of the first branch's LONG state over the second's. It depends on units: see BALANCE."""
    first, second = (torch.cat([t.flatten() for t in _states_of(sample, b)]) for b in sample.branch_names[:2])
    return rms(first) / rms(second)


def _states_of(sample: ModelSample, branch: str) -> list[torch.Tensor]:
    """The LONG states of one branch, layer by layer."""
    return [t for (_, name), site in sorted(sample.branches.items()) if name == branch for t in site.state.values()]


def write_health(sample: ModelSample, seed: int) -> list[WriteHealth]:
    """What every branch of a parallel hybrid writes; empty where no layer has two branches."""
    layers = sorted({layer for layer, _ in sample.branches})
    by_layer = {
        layer: {name: s.writes for (at, name), s in sample.branches.items() if at == layer and s.writes.numel()}
        for layer in layers
    }
    parallel = {layer: writes for layer, writes in by_layer.items() if len(writes) > 1}
    shares = {layer: activation_shares(writes, sample.documents) for layer, writes in parallel.items()}
    names = dict.fromkeys(name for writes in parallel.values() for name in writes)
    return [
        WriteHealth(
            name,
            bootstrap_ratio(
                pooled([input_sensitivity(w[name], sample.documents) for w in parallel.values()]), seed=seed
            ),
            bootstrap_ratio(pooled([share[name] for share in shares.values()]), seed=seed),
            {layer: share[name].value for layer, share in shares.items()},
        )
        for name in names
    ]


def layer_gate_saturation(sample: ModelSample) -> dict[int, float]:
    """Share of saturated mixing gates, layer by layer."""
    return {layer: gate_saturation(logits) for layer, logits in sorted(sample.gate_logits.items())}
