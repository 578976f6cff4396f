"""The probe row: what a look inside a model in training finds, as plain numbers for its log.

    rho_<branch>     how much the writes of a branch depend on what is read, layers pooled; in [0, 1]
    dead_<branch>    share of its channels that never write, in the worst layer
    share_<branch>   type A share of what two parallel branches write, layers pooled
    gate_mean, gate_saturation   mixing gate (the share of RWKV-6) and share of saturated logits, by layer
    state_rms        {state: [[by head] by layer]}, in the state's own unit
    state_rho        {state: [by layer]}, how much the state depends on what was read
    erank            {state: [by layer]}, effective rank of the median head, for states that are matrices
    decay_mean       {branch: [by layer]}, mean multiplier of the state
    innovation       {branch: [by layer]}, median share of the state that is new at a position

A state goes by the name of its branch, or ``branch.kind`` where a branch carries several. A layer that lacks what is
listed has None. What a model does not show is left out; a number that does not exist is NaN.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from harness.metrics.balance import activation_shares
from harness.metrics.intervals import pooled
from harness.metrics.spectrum import effective_rank
from harness.metrics.state import gate_saturation, input_sensitivity, silent_channels
from harness.state_probe import BranchSample, ModelSample

# [batch, heads, rows, columns]; a state of fewer dimensions has no heads of its own
_MATRIX_DIMS = 4


def probe_row(sample: ModelSample) -> dict[str, Any]:
    """The numbers of a probe row; see the module for names and units. Non-finite samples give NaN, never an error."""
    # a diverging model is what the probe is for: inf - inf must be NaN and no warning
    with np.errstate(invalid="ignore", over="ignore"):
        return {**_writes(sample), **_gates(sample), **_states(sample), **_motion(sample)}


def summary(row: Mapping[str, Any]) -> str:
    """A probe row in a few words: the rho of each branch's writes (else of its states) and the mean gate."""
    rho = {key.removeprefix("rho_"): row[key] for key in row if key.startswith("rho_")}
    rho = rho or {name: _mean(layers) for name, layers in row.get("state_rho", {}).items()}
    parts = [f"{name} {_short(value)}" for name, value in rho.items()]
    if parts:
        name, _, value = parts[0].partition(" ")
        parts[0] = f"{name} rho {value}"
    if "gate_mean" in row:
        parts.append(f"gate {_short(_mean(row['gate_mean']))}")
    return ", ".join(parts)


def _writes(sample: ModelSample) -> dict[str, float]:
    row = {}
    for branch in sample.branch_names:
        writes = [site.writes for site in _by_layer(sample, branch) if site is not None and site.writes.numel()]
        if writes:
            row[f"rho_{branch}"] = pooled([input_sensitivity(w, sample.documents) for w in writes]).value
            # numpy's maximum keeps a NaN wherever it stands
            row[f"dead_{branch}"] = float(np.max([silent_channels(w) for w in writes]))
    layers = [
        {name: s.writes for (at, name), s in sample.branches.items() if at == layer and s.writes.numel()}
        for layer in range(_num_layers(sample))
    ]
    shares = [activation_shares(writes, sample.documents) for writes in layers if len(writes) > 1]
    for branch in dict.fromkeys(name for share in shares for name in share):
        row[f"share_{branch}"] = pooled([share[branch] for share in shares]).value
    return row


def _gates(sample: ModelSample) -> dict[str, Any]:
    row: dict[str, Any] = {}
    layers = range(_num_layers(sample))
    if sample.gates:
        row["gate_mean"] = [float(sample.gates[i].mean()) if i in sample.gates else None for i in layers]
    if sample.gate_logits:
        row["gate_saturation"] = [
            gate_saturation(sample.gate_logits[i]) if i in sample.gate_logits else None for i in layers
        ]
    return row


def _states(sample: ModelSample) -> dict[str, Any]:
    states: dict[str, list[Tensor | None]] = {}
    for branch in sample.branch_names:
        sites = _by_layer(sample, branch)
        kinds = dict.fromkeys(kind for site in sites if site is not None for kind in site.state)
        for kind in kinds:
            name = branch if len(kinds) == 1 else f"{branch}.{kind}"
            states[name] = [None if site is None else site.state.get(kind) for site in sites]
    row = {
        "state_rms": {name: _each(layers, _rms_by_head) for name, layers in states.items()},
        "state_rho": {
            name: _each(layers, lambda state: input_sensitivity(state, sample.documents).value)
            for name, layers in states.items()
        },
        "erank": {
            name: _each(layers, lambda state: float(effective_rank(state).median()))
            for name, layers in states.items()
            if all(state is None or state.ndim >= _MATRIX_DIMS for state in layers)
        },
    }
    return {key: by_state for key, by_state in row.items() if by_state}


def _motion(sample: ModelSample) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for branch in sample.branch_names:
        sites = _by_layer(sample, branch)
        decays = [None if site is None or not site.decays.numel() else site.decays for site in sites]
        innovations = [None if site is None or not site.innovations.numel() else site.innovations for site in sites]
        if any(decay is not None for decay in decays):
            row.setdefault("decay_mean", {})[branch] = _each(decays, lambda values: float(values.mean()))
        if any(innovation is not None for innovation in innovations):
            row.setdefault("innovation", {})[branch] = _each(innovations, lambda values: float(values.median()))
    return row


def _num_layers(sample: ModelSample) -> int:
    return 1 + max(layer for layer, _ in sample.branches)


def _by_layer(sample: ModelSample, branch: str) -> list[BranchSample | None]:
    return [sample.branches.get((layer, branch)) for layer in range(_num_layers(sample))]


def _each(layers: list[Tensor | None], measure: Callable[[Tensor], Any]) -> list[Any]:
    return [None if values is None else measure(values) for values in layers]


def _rms_by_head(state: Tensor) -> list[float]:
    state_nHx = (state if state.ndim >= _MATRIX_DIMS else state[:, None]).flatten(2)
    rms_H: list[float] = state_nHx.square().mean((0, 2)).sqrt().tolist()
    return rms_H


def _mean(layers: list[float | None]) -> float:
    return float(np.mean([value for value in layers if value is not None]))


def _short(value: float) -> str:
    """Two decimals without the zero in front."""
    return f"{value:.2f}".removeprefix("0")
