"""Does a model ground what it says in what it was told? Three shares, from likelihoods alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harness.forced_choice import BATCH_TOKENS, Canary, Encode, log_probabilities
from harness.metrics.clustered import clustered_share
from harness.metrics.forced_choice import credit, gold_mask, log_ratio
from harness.metrics.grounding import Grounding, consistency, grounding, novelty
from harness.trace import observing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Unstated:
    """A question that no part of the dialogue answers. null: the dialogue with other text in place of its facts."""

    context: str
    null: str
    candidates: tuple[str, ...]
    template: int


@dataclass(frozen=True)
class Pair:
    """Two statements after a dialogue, of equally many tokens: one follows from it, one contradicts it."""

    context: str
    entailed: str
    contradicted: str
    template: int


@dataclass(frozen=True)
class GroundingItems:
    """The items of the three shares."""

    stated: Canary
    unstated: Sequence[Unstated]
    pairs: Sequence[Pair]


@dataclass(frozen=True)
class GroundingReading:
    """What one model makes of the items.

    chance  of ``found.reference``
    heard   mean over questions about stated facts of the largest rise or fall of a candidate through the facts, nats:
            exactly 0 for a model that hears nothing
    moved   median of the same over questions about facts that were never stated: what ``found.novelty`` cuts at .5
    """

    found: Grounding
    chance: float
    heard: float
    moved: float


def read_grounding(model: nn.Module, items: GroundingItems, encode: Encode, *, device: str) -> GroundingReading:
    """Score the items; needs logits only."""
    probes, templates = items.stated.probes, items.stated.templates
    added = log_ratio(
        log_probabilities(model, [(probe.context, probe.candidates) for probe in probes], encode, device),
        log_probabilities(model, [(probe.null, probe.candidates) for probe in probes], encode, device),
    )
    right = items.stated.joint(credit(added, gold_mask([probe.gold for probe in probes], added.shape[1])))
    invented = log_ratio(
        log_probabilities(model, [(each.context, each.candidates) for each in items.unstated], encode, device),
        log_probabilities(model, [(each.null, each.candidates) for each in items.unstated], encode, device),
    )
    pairs = items.pairs
    entailed, contradicted = (
        text_log_probabilities(model, [(pair.context, getattr(pair, side)) for pair in pairs], encode, device)
        for side in ("entailed", "contradicted")
    )
    return GroundingReading(
        grounding(
            clustered_share(right, templates),
            novelty(invented, np.array([each.template for each in items.unstated])),
            consistency(entailed, contradicted, np.array([pair.template for pair in pairs])),
        ),
        items.stated.chance,
        float(np.abs(added).max(1).mean()),
        float(np.median(np.abs(invented).max(1))),
    )


def text_log_probabilities(model: nn.Module, texts: Sequence[tuple[str, str]], encode: Encode, device: str) -> Floats:
    """``log p(continuation | context)`` ``[n]``, summed over the tokens of the continuation; natural logarithms.

    Context and continuation are encoded apart. Texts of a batch are padded behind their end, where a causal model
    cannot look.
    """
    ids = [(encode(context), encode(continuation)) for context, continuation in texts]
    found = np.empty(len(ids))
    size = max(1, BATCH_TOKENS[device] // max(len(before) + len(after) for before, after in ids))
    with observing(model):
        for at in range(0, len(ids), size):
            found[at : at + size] = _summed(model, ids[at : at + size], device)
    return found


def _summed(model: nn.Module, ids: Sequence[tuple[list[int], list[int]]], device: str) -> list[float]:
    tokens_BT = torch.zeros(len(ids), max(len(before) + len(after) for before, after in ids), dtype=torch.int64)
    for row, (before, after) in enumerate(ids):
        tokens_BT[row, : len(before) + len(after)] = torch.tensor([*before, *after])
    logits_BTV = model(tokens_BT.to(device))
    sums = []
    for row, (before, after) in enumerate(ids):
        log_p_TV = logits_BTV[row, len(before) - 1 : len(before) + len(after) - 1].double().log_softmax(-1)
        sums.append(float(log_p_TV.gather(1, torch.tensor(after, device=log_p_TV.device)[:, None]).sum()))
    return sums
