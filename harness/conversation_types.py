"""Do conversations fall into types by how the state moves over their turns? Features of true states, and clusters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.batching import rows_at_once
from harness.forced_choice import Encode
from harness.metrics.genome import adjusted_rand, genome, standardise
from harness.metrics.magnitude import relative_distance
from harness.metrics.spectrum import effective_rank
from harness.trace import trace
from models.protocol import Activations, State

Floats = NDArray[np.float64]

MOST = 6
"""Types that are looked for, at most."""

_CPU_ROWS = 16
"""Dialogues of one pass on a CPU."""

DISTANCE = "distance to the turn before"


@dataclass(frozen=True)
class Scripted:
    """A dialogue of a known type: its turns, each beginning with its speaker."""

    kind: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class ConversationTypes:
    """What a clustering of dialogues found that knows nothing of their scripts.

    clusters, stability, null, reportable  as ``harness.metrics.genome.Genome`` has them
    agreement  adjusted Rand index of the clusters with the scripts; 0 for one cluster
    moved      by branch, median over dialogues and turns of the relative distance of LONG states of turns in a row
    features   names; courses ``[clusters][turns][features]`` their means, standardised over all dialogues and turns
    turns      from which the features are: the second turn is the first that has one before it
    """

    clusters: int
    stability: float
    null: float
    reportable: bool
    agreement: float
    moved: dict[str, float]
    features: list[str]
    courses: list[list[list[float]]]
    turns: list[int]
    dialogues: int


def read_conversations(
    model: nn.Module, dialogues: Sequence[Scripted], encode: Encode, *, device: str, seed: int
) -> ConversationTypes:
    """Cluster dialogues of equally many turns. The model must have the hook ``state``, of a size that does not grow."""
    names, features_nTF = course_features(model, [dialogue.turns for dialogue in dialogues], encode, device=device)
    suffix = f": {DISTANCE}"
    moved = {
        name.removesuffix(suffix): float(np.median(features_nTF[:, :, at]))
        for at, name in enumerate(names)
        if name.endswith(suffix)
    }
    found = genome(features_nTF, seed=seed, most=MOST)
    labels, standard = np.array(found.labels), standardise(features_nTF)
    return ConversationTypes(
        found.clusters,
        found.stability,
        found.null,
        found.reportable,
        adjusted_rand([dialogue.kind for dialogue in dialogues], labels),
        moved,
        names,
        [standard[labels == label].mean(0).tolist() for label in range(found.clusters)],
        list(range(2, len(dialogues[0].turns) + 1)),
        len(dialogues),
    )


def course_features(
    model: nn.Module, courses: Sequence[Sequence[str]], encode: Encode, device: str
) -> tuple[list[str], Floats]:
    """Names, and the features of each turn but the first of dialogues of equally many ``[n, turns - 1, features]``.

    Of each branch, layers averaged: size of the LONG state at the end of the turn (log RMS), its effective rank where
    it is made of matrices, its distance to that of the turn before; and the share of the state that was new at a token
    of the turn, where the model says it.
    """
    ids = [[encode(turn) for turn in turns] for turns in courses]
    size = rows_at_once(_CPU_ROWS, max(len(turn) for turns in ids for turn in turns), device)
    parts = [_features(model, ids[begin : begin + size], device) for begin in range(0, len(ids), size)]
    return parts[0][0], np.concatenate([features_nTF for _, features_nTF in parts])


def _features(model: nn.Module, ids: Sequence[Sequence[Sequence[int]]], device: str) -> tuple[list[str], Floats]:
    before = _read_turn(model, [turns[0] for turns in ids], None, device)
    names: list[str] = []
    by_turn = []
    for at in range(1, len(ids[0])):
        turn = _read_turn(model, [turns[at] for turns in ids], before.state, device)
        columns = _columns(turn, before)
        names, before = list(columns), turn
        by_turn.append(torch.stack(list(columns.values()), dim=1).cpu().numpy())
    return names, np.stack(by_turn, axis=1)


@dataclass(frozen=True)
class _Turn:
    """One turn of n dialogues: their states at its end, and by branch ``[n]`` the share of them that was new."""

    state: State
    new: dict[str, Tensor]


def _read_turn(model: nn.Module, turns: Sequence[Sequence[int]], state: State | None, device: str) -> _Turn:
    """Read a turn of each dialogue, those of one length in one pass."""
    rows: list[int] = []
    read: list[_Turn] = []
    for length in sorted(set(map(len, turns))):
        alike = [row for row, turn in enumerate(turns) if len(turn) == length]
        text_BT = torch.tensor([turns[row] for row in alike], device=device)
        seen = trace(model, text_BT, [length], state=None if state is None else state.rows(alike))
        read.append(_Turn(seen.states[0], _innovations(seen.activations)))
        rows += alike
    in_order = torch.tensor(rows).argsort()
    new = {branch: torch.cat([part.new[branch] for part in read])[in_order.to(device)] for branch in read[0].new}
    return _Turn(State.cat([part.state for part in read]).rows(in_order), new)


def _innovations(activations: Activations | None) -> dict[str, Tensor]:
    """By branch ``[B]``, of those that every layer tells: mean over layers, positions and heads."""
    if activations is None:
        return {}
    layers = [layer.innovations for layer in activations.layers]
    told = [branch for branch in layers[0] if all(branch in layer for layer in layers)]
    return {branch: _mean([layer[branch].double().flatten(1).mean(1) for layer in layers]) for branch in told}


def _columns(turn: _Turn, before: _Turn) -> dict[str, Tensor]:
    """Features by name, each ``[n]`` fp64."""
    found: dict[str, Tensor] = {}
    previous = dict(before.state.items())
    for branch in dict.fromkeys(path.branch for path, _ in turn.state.long_items()):
        layers = {path: tensor for path, tensor in turn.state.long_items() if path.branch == branch}
        sizes = [tensor.double().flatten(1).square().mean(1).sqrt() for tensor in layers.values()]
        found[f"{branch}: log RMS"] = _mean([size.log() for size in sizes])
        distances = [relative_distance(tensor, previous[path]) for path, tensor in layers.items()]
        found[f"{branch}: {DISTANCE}"] = _mean(distances)
        if all(tensor.dim() == 4 for tensor in layers.values()):
            found[f"{branch}: effective rank"] = _mean([effective_rank(t).mean(1) for t in layers.values()])
        if branch in turn.new:
            found[f"{branch}: innovation"] = turn.new[branch]
    return found


def _mean(layers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(layers)).mean(0)
