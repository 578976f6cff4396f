"""Context heat map: how much each token of a text moves what the model says, and what it carries, at every later place.

    J[s, t] = E KL(p_t || p_t with x_s drawn anew),    relative change of the state at t for the same edit

A gradient norm would be a proxy: it tells of infinitesimal changes, and no token is changed infinitesimally.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.batching import rows_at_once
from harness.data import Windows
from harness.evaluation import to_device
from harness.figures import MatrixFigure
from harness.trace import observing, trace
from models.protocol import State

SOURCES, PLACES = list(range(0, 128, 4)), list(range(3, 128, 4))
FLOOR = 1e-6
"""Influences below are rounding, and are drawn as this."""


@dataclass(frozen=True)
class Influence:
    """Means over documents.

    sources, places   positions edited and positions looked at (0-based; a state at place t has read token t)
    output            ``[sources][places]`` nats: KL of the next-token distribution
    state             by branch, ``[sources][places]`` relative change ||S - S'|| / ||S||, layers averaged
    before_source     largest KL or state change at a place before its source: 0 for a causal model
    """

    sources: list[int]
    places: list[int]
    output: list[list[float]]
    state: dict[str, list[list[float]]]
    before_source: float
    n: int


def heat_map(model: nn.Module, windows: Windows, *, device: str) -> Influence:
    """``influence`` on windows of at least 128 tokens; edited tokens become tokens of the split drawn at random."""
    inputs, _, _ = next(windows.batches(len(windows)))
    tokens_BT = to_device(inputs[:, :128], torch.device(device))
    places = np.random.default_rng(0).integers(0, len(windows.split), size=(len(tokens_BT), len(SOURCES)))
    draws_BS = to_device(np.asarray(windows.split.tokens[places]), torch.device(device))
    return influence(model, tokens_BT, draws_BS, SOURCES, PLACES)


def figures(found: Influence, subject: str) -> dict[str, MatrixFigure]:
    """The influence on the output and on each branch's state, in powers of ten, by name."""
    maps = {"output": (found.output, "what the model says", "KL, nats")}
    maps |= {b: (values, f"the {b} state", "relative change") for b, values in found.state.items()}
    return {
        f"heat-map-{name}": MatrixFigure(
            title=f"Influence of each token on {what}, {subject}",
            x_label="position looked at",
            y_label="position edited",
            value_label=f"log10 of {unit}, floor {math.log10(FLOOR):.0f}",
            values=[[math.log10(max(value, FLOOR)) for value in row] for row in values],
            x_ticks=[str(place) for place in found.places],
            y_ticks=[str(source) for source in found.sources],
        )
        for name, (values, what, unit) in maps.items()
    }


def influence(
    model: nn.Module, tokens_BT: Tensor, draws_BS: Tensor, sources: list[int], places: list[int]
) -> Influence:
    """Edit the tokens at ``sources`` one at a time and read the whole text again.

    ``draws_BS`` holds what token ``sources[s]`` of row b becomes, drawn from the unigram distribution. Every pass
    starts at the first token, so that a change before the edit would be seen. The model must have the hook ``state``.
    """
    ends = [place + 1 for place in places]
    rows = len(tokens_BT)
    at_once = min(len(sources), max(1, rows_at_once(rows, tokens_BT.shape[1], tokens_BT.device) // rows))
    output: list[list[float]] = []
    by_branch: dict[str, list[list[float]]] = {}
    before = 0.0
    with observing(model):
        clean: _Reading | None = None
        for begin in range(0, len(sources), at_once):
            chosen = sources[begin : begin + at_once]
            edited_BT = tokens_BT.repeat(len(chosen), 1)
            for index, source in enumerate(chosen):
                edited_BT[index * rows : (index + 1) * rows, source] = draws_BS[:, begin + index]
            # the clean text in as many rows: kernels may round another number of rows in another way
            if clean is None or len(clean.logp) != len(edited_BT):
                clean = _read(model, tokens_BT.repeat(len(chosen), 1), places, ends)
            edited = _read(model, edited_BT, places, ends)
            divergence_BP = F.kl_div(edited.logp, clean.logp, log_target=True, reduction="none").sum(-1)
            output += divergence_BP.view(len(chosen), rows, -1).mean(1).tolist()
            for branch, moved_SP in _changes(clean.states, edited.states, len(chosen)).items():
                by_branch.setdefault(branch, []).extend(moved_SP.tolist())
    for row, source in enumerate(sources):
        early = [index for index, place in enumerate(places) if place < source]
        tables = (output, *by_branch.values())
        # not the built-in max, which passes over NaN
        before = float(np.max([before, *(abs(table[row][index]) for table in tables for index in early)]))
    return Influence(sources, places, output, by_branch, before, rows)


@dataclass(frozen=True)
class _Reading:
    """Log-probabilities of what follows each place ``[B, P, V]``, and the state there."""

    logp: Tensor
    states: tuple[State, ...]


def _read(model: nn.Module, tokens_BT: Tensor, places: list[int], ends: list[int]) -> _Reading:
    logp_BPV = F.log_softmax(model(tokens_BT)[:, places].float(), -1)
    return _Reading(logp_BPV, trace(model, tokens_BT, ends, activations=False).states)


def _changes(clean: Sequence[State], edited: Sequence[State], edits: int) -> dict[str, Tensor]:
    """Relative change of the LONG state ``[edits, places]``, by branch: mean over layers, kinds and rows of an edit."""
    found: dict[str, list[Tensor]] = {}
    for state, other in zip(clean, map(dict, (each.items() for each in edited)), strict=True):
        moved: dict[str, list[Tensor]] = {}
        for path, tensor in state.long_items():
            difference_B = (tensor - other[path]).flatten(1).double().norm(dim=1)
            share_B = difference_B / tensor.flatten(1).double().norm(dim=1)
            moved.setdefault(path.branch, []).append(share_B.view(edits, -1).mean(1))
        for branch, changes in moved.items():
            found.setdefault(branch, []).append(torch.stack(changes).mean(0))
    return {branch: torch.stack(places, dim=1) for branch, places in found.items()}
