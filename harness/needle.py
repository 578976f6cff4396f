"""A fact planted in natural text, and what it is worth to a choice between ten values: the likelihood form.

Texts come from ``fixtures.needles``; nothing is generated, so a model too small to answer can still be measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from harness.batching import rows_at_once
from harness.episodic import CONTROL_LEVEL, Floats, Integers, choice_scores, ids, proportion
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Needles:
    """Texts ``[n, length]`` that end in a question: without the fact, and with it at each depth.

    values ``[n]`` index into ``choices``, the token ids to choose from; documents ``[n]``
    """

    length: int
    without: Integers
    planted: Mapping[float, Integers]
    values: Integers
    documents: Integers
    choices: tuple[int, ...]


@dataclass(frozen=True)
class NeedleReading:
    """What a planted fact is worth at one depth of one length.

    accuracy of the choice by log p; lifted: of the choice by how much the fact raised log p; gain in nats
    """

    length: int
    depth: float
    accuracy: Interval
    lifted: Interval
    gain: Interval


@dataclass(frozen=True)
class NeedleMemory:
    """All depths and lengths. without: accuracy of the choice in the texts that hold no fact, at the control level."""

    readings: list[NeedleReading]
    without: Interval
    choices: int


def read_needles(model: nn.Module, sets: Sequence[Needles], *, device: str, seed: int) -> NeedleMemory:
    """Score the choice between the values with and without the fact; needs logits only."""
    readings, blind, documents = [], [], []
    for needles in sets:
        bare = _scores(model, needles.without, needles.choices, device)
        blind.append(bare.argmax(1) == needles.values)
        documents.append(needles.documents)
        index = np.arange(len(needles.values))
        for depth, tokens in needles.planted.items():
            planted = _scores(model, tokens, needles.choices, device)
            gain = (planted - bare)[index, needles.values]
            readings.append(
                NeedleReading(
                    needles.length, depth,
                    proportion(planted.argmax(1) == needles.values, needles.documents),
                    proportion((planted - bare).argmax(1) == needles.values, needles.documents),
                    bootstrap_ratio(ClusterRatio.of(gain, np.ones(len(gain)), needles.documents), seed=seed),
                )
            )  # fmt: skip
    return NeedleMemory(
        readings, proportion(np.concatenate(blind), np.concatenate(documents), CONTROL_LEVEL), len(sets[0].choices)
    )


def _scores(model: nn.Module, tokens: Integers, choices: Sequence[int], device: str) -> Floats:
    batch = rows_at_once(max(1, BATCH_TOKENS // tokens.shape[1]), tokens.shape[1], device)
    scores = [
        choice_scores(model, ids(tokens[at : at + batch], device), choices) for at in range(0, len(tokens), batch)
    ]  # fmt: skip
    return torch.cat(scores).numpy()
