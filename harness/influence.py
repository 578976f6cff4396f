"""Context heat map: how much each token of a text moves what the model says, and what it carries, at every later place.

    J[s, t] = E KL(p_t || p_t with x_s drawn anew),    relative change of the state at t for the same edit

A gradient norm would be a proxy: it tells of infinitesimal changes, and no token is changed infinitesimally.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    with observing(model):
        clean_BTV = F.log_softmax(model(tokens_BT)[:, places].float(), -1)
        clean = trace(model, tokens_BT, ends, activations=False).states
        output: list[list[float]] = []
        by_branch: dict[str, list[list[float]]] = {branch: [] for branch in clean[0].branches}
        before = 0.0
        for column, source in enumerate(sources):
            edited_BT = tokens_BT.clone()
            edited_BT[:, source] = draws_BS[:, column]
            edited_BTV = F.log_softmax(model(edited_BT)[:, places].float(), -1)
            divergence_P = F.kl_div(edited_BTV, clean_BTV, log_target=True, reduction="none").sum(-1).mean(0)
            output.append(divergence_P.tolist())
            edited = trace(model, edited_BT, ends, activations=False).states
            moved = [_changes(a, b) for a, b in zip(clean, edited, strict=True)]
            for branch, rows in by_branch.items():
                rows.append([change[branch] for change in moved])
            early = [index for index, place in enumerate(places) if place < source]
            seen = [abs(output[-1][i]) for i in early] + [change for i in early for change in moved[i].values()]
            before = max([before, *seen])
    return Influence(sources, places, output, by_branch, before, len(tokens_BT))


def _changes(clean: State, edited: State) -> dict[str, float]:
    """Relative change of the LONG state, by branch: mean over layers, kinds and rows."""
    other = dict(edited.items())
    found: dict[str, list[Tensor]] = {}
    for path, tensor in clean.long_items():
        difference = (tensor - other[path]).flatten(1).double().norm(dim=1)
        found.setdefault(path.branch, []).append((difference / tensor.flatten(1).double().norm(dim=1)).mean())
    return {branch: float(torch.stack(changes).mean()) for branch, changes in found.items()}
