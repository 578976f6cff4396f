"""Ratios between branches as they used to be computed, beside the ones that mean something: what BALANCE prints."""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.data import Windows
from harness.metrics.balance import Moments
from harness.reparametrise import enlarged_state, key_readers
from harness.trace import observing
from models.protocol import State, capabilities

COMPARED = 16
"""Last positions of each window whose logits are compared: all of them would fill the memory twice."""


@dataclass(frozen=True)
class RawBalance:
    """Ratios of the first branch over the second. None where the model does not show what a ratio needs; NaN where a
    variance is zero, so that no ratio exists.

    output_variance_ratio      variances of the mixers' outputs before fusion, pooled over channels, positions, layers
    state_variance_ratio       variances of all entries of the true LONG states at the end of the windows
    enlarged_variance_ratio    the same for the same function with a larger state (``harness.reparametrise``)
    enlarged_logit_change      largest change of a logit that this made
    write_over_residual        RMS of a branch's write over the RMS of the residual stream it is added to, by branch
                               and layer
    silent_outputs             branches whose mixers put out one and the same number everywhere: an untrained RWKV-6,
                               whose output matrix is zero
    """

    branches: tuple[str, str]
    output_variance_ratio: float | None
    state_variance_ratio: float
    enlarged_variance_ratio: float | None
    enlarged_logit_change: float | None
    write_over_residual: dict[str, dict[int, float]] | None
    silent_outputs: tuple[str, ...]


def log_spread(ratios: Sequence[float | None]) -> float | None:
    """Standard deviation over seeds of the natural log of a ratio, with n - 1, nats.

    None for fewer than two seeds, and where any of them has no ratio: the others' spread would be that of a choice.
    """
    logs = [math.log(ratio) if ratio is not None and 0 < ratio < math.inf else math.nan for ratio in ratios]
    return float(np.std(logs, ddof=1)) if len(logs) > 1 and all(map(math.isfinite, logs)) else None


def raw_balance(model: nn.Module, windows: Windows, *, device: str) -> RawBalance:
    """Read the windows once, and once more with a larger state where the model has one that can be enlarged.

    The model must have the hook ``state`` and two branches with a LONG state.
    """
    inputs, _, _ = next(windows.batches(len(windows)))
    tokens_nT = torch.from_numpy(inputs.astype(np.int64)).to(device)
    with observing(model):
        seen, logits_nCV, state = _watched(model, tokens_nT)
        enlarged = None
        if key_readers(model):
            with enlarged_state(model):
                _, enlarged_nCV, enlarged = _watched(model, tokens_nT)
    first, second, *_ = dict.fromkeys(path.branch for path, _ in state.long_items())
    outputs = [seen.outputs.get(branch) for branch in (first, second)]
    return RawBalance(
        branches=(first, second),
        output_variance_ratio=_ratio(outputs[0], outputs[1]) if outputs[0] and outputs[1] else None,
        state_variance_ratio=_state_ratio(state, first, second),
        enlarged_variance_ratio=None if enlarged is None else _state_ratio(enlarged, first, second),
        enlarged_logit_change=None if enlarged is None else float((enlarged_nCV - logits_nCV).abs().max()),
        write_over_residual=seen.write_over_residual(),
        silent_outputs=tuple(
            branch for branch, found in zip((first, second), outputs, strict=True) if found and not found.variance
        ),
    )


@dataclass
class _Seen:
    """What hooks and activations show of one pass, as sums."""

    outputs: dict[str, Moments] = field(default_factory=lambda: defaultdict(Moments))
    residual: dict[int, Moments] = field(default_factory=lambda: defaultdict(Moments))
    writes: dict[str, dict[int, Moments]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Moments)))

    def output(self, branch: str, _: nn.Module, __: Any, output: Any) -> None:
        """A mixer's output: a tensor, or a tuple or record that holds it first."""
        found = getattr(output, "y", output[0] if isinstance(output, tuple) else output)
        if isinstance(found, Tensor):
            self.outputs[branch].add(found)

    def layer_input(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            self.residual[layer].add(args[0])

    def write_over_residual(self) -> dict[str, dict[int, float]] | None:
        if not self.writes or not self.residual:
            return None
        return {
            branch: {layer: moments.rms / self.residual[layer].rms for layer, moments in layers.items()}
            for branch, layers in self.writes.items()
        }


def _watched(model: nn.Module, tokens_nT: Tensor) -> tuple[_Seen, Tensor, State]:
    seen, hooks = _Seen(), capabilities(model)
    with ExitStack() as watching:
        if "branch_modules" in hooks:
            for branch, mixers in model.branch_modules().items():  # type: ignore[operator]
                for mixer in mixers:
                    watching.callback(mixer.register_forward_hook(partial(seen.output, branch)).remove)
        if "activations" not in hooks:
            logits_nTV, state = model(tokens_nT, return_states=True)
            return seen, logits_nTV[:, -COMPARED:].clone(), state
        layers = getattr(model, "layers", None)
        for index, layer in enumerate(layers if isinstance(layers, nn.ModuleList) else ()):
            watching.callback(layer.register_forward_pre_hook(partial(seen.layer_input, index)).remove)
        logits_nTV, state, activations = model(tokens_nT, return_states=True, return_activations=True)
        for index, observed in enumerate(activations.layers):
            for branch, write_nTD in observed.writes.items():
                seen.writes[branch][index].add(write_nTD)
        # the residual is what goes into a layer only where the model has as many layers as it reports
        if len(seen.residual) != len(activations.layers):
            seen.residual.clear()
    return seen, logits_nTV[:, -COMPARED:].clone(), state


def _state_ratio(state: State, first: str, second: str) -> float:
    moments = {first: Moments(), second: Moments()}
    for path, tensor in state.long_items():
        if path.branch in moments:
            moments[path.branch].add(tensor)
    return _ratio(moments[first], moments[second])


def _ratio(first: Moments, second: Moments) -> float:
    return first.variance / second.variance if first.variance and second.variance else math.nan
