"""Do conversations fall into types by how the state moves over their turns? Features of true states, and clusters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harness.forced_choice import Encode
from harness.metrics.genome import adjusted_rand, genome, standardise
from harness.metrics.magnitude import relative_distance
from harness.metrics.spectrum import effective_rank
from harness.metrics.state import rms
from harness.trace import Trace, trace

Floats = NDArray[np.float64]

MOST = 6
"""Types that are looked for, at most."""

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
    names: list[str] = []
    rows = []
    for dialogue in dialogues:
        names, features_TF = turn_features(model, dialogue.turns, encode, device)
        rows.append(features_TF)
    features_nTF = np.stack(rows)
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


def turn_features(model: nn.Module, turns: Sequence[str], encode: Encode, device: str) -> tuple[list[str], Floats]:
    """Names, and the features of each turn but the first ``[turns - 1, features]``: of each branch, layers averaged.

    Size of the LONG state at the end of the turn (log RMS), its effective rank where it is made of matrices, its
    distance to that of the turn before; and the share of the state that was new at a token of the turn, where the model
    says it.
    """
    ids = [encode(turn) for turn in turns]
    ends = np.cumsum([len(each) for each in ids])
    text_BT = torch.tensor([[token for each in ids for token in each]], device=device)
    seen = trace(model, text_BT, ends.tolist())
    names: list[str] = []
    columns: list[list[float]] = []
    for branch in dict.fromkeys(path.branch for path, _ in seen.states[0].long_items()):
        for name, column in _branch_features(seen, branch).items():
            names.append(f"{branch}: {name}")
            columns.append(column)
    return names, np.array(columns).T


def _branch_features(seen: Trace, branch: str) -> dict[str, list[float]]:
    by_turn = [[tensor for path, tensor in state.long_items() if path.branch == branch] for state in seen.states]
    later = by_turn[1:]
    found = {
        "log RMS": [_mean([float(np.log(rms(tensor))) for tensor in layers]) for layers in later],
        DISTANCE: [
            _mean([float(relative_distance(own, before)) for own, before in zip(layers, previous, strict=True)])
            for previous, layers in zip(by_turn, later, strict=False)
        ],
    }
    if all(tensor.dim() == 4 for tensor in later[0]):
        found["effective rank"] = [
            _mean([float(effective_rank(tensor).mean()) for tensor in layers]) for layers in later
        ]
    if seen.activations is not None and all(branch in layer.innovations for layer in seen.activations.layers):
        new = [layer.innovations[branch].double().mean(-1)[0] for layer in seen.activations.layers]
        found["innovation"] = [
            _mean([float(share_T[begin:end].mean()) for share_T in new])
            for begin, end in zip(seen.positions, seen.positions[1:], strict=False)
        ]
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
