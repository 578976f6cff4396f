"""Canaries: items that ask a model to choose, and what its likelihoods say of each choice.

An item is one probe or several with a joint rule; a probe is a text and the words that could follow it. Every word is
one token. The same probe is read in several forms: whole, without its facts, with the facts of others, and from the
last turn alone. What a form must and must not give away is what the controls measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.metrics.canary_score import Answers, CanaryScore, macro_score
from harness.metrics.clustered import clustered_share
from harness.metrics.forced_choice import (
    ReferenceRates,
    Reversion,
    choices,
    credit,
    gold_mask,
    joint_credit,
    kappa,
    leaks,
    log_ratio,
    reference_rates,
    reversion,
)
from harness.metrics.intervals import Interval
from harness.trace import observing

T = TypeVar("T")
Floats = NDArray[np.float64]
Encode = Callable[[str], list[int]]

BATCH_TOKENS = {"cpu": 8192, "cuda": 131_072}
"""Tokens of a batch: only the logits after each text are kept."""


@dataclass(frozen=True)
class Probe:
    """One choice.

    context     the text up to the choice, ending in no white space
    candidates  the words to choose from, each one token after the context, its space included
    gold        indices of what is right
    null        the context with other text in place of everything that names a candidate
    without     the context with other text in place of the fact that is asked for; the other facts stay
    shuffled    the context with the values of its facts exchanged: every value is told of another key
    query       the last turn of the context alone: what is left when the state is reset before it
    mentioned   indices of the candidates that the context names, in the order of their last mention
    old         index of the value that a correction replaced
    """

    context: str
    candidates: tuple[str, ...]
    gold: tuple[int, ...]
    null: str
    without: str = ""
    shuffled: str = ""
    query: str = ""
    mentioned: tuple[int, ...] = ()
    old: int | None = None


@dataclass(frozen=True)
class Item:
    """Probes that count together: right when at least ``need`` of them are. template is what items have in common."""

    probes: tuple[Probe, ...]
    need: int
    template: int


@dataclass(frozen=True)
class Canary:
    """The items of one canary. chance is that of a uniform guess among the candidates, joint rule included."""

    id: str
    items: tuple[Item, ...]
    chance: float

    @property
    def probes(self) -> list[Probe]:
        """Of all items, in order."""
        return [probe for item in self.items for probe in item.probes]

    @property
    def templates(self) -> NDArray[np.int64]:
        """The cluster of each item."""
        return np.array([item.template for item in self.items])

    def first(self, count: int) -> "Canary":
        """``count`` items, spread evenly over all, so that every template stays."""
        places = np.linspace(0, len(self.items) - 1, min(count, len(self.items))).round().astype(int)
        return replace(self, items=tuple(self.items[place] for place in places))

    def joint(self, credit_p: Floats) -> Floats:
        """Credit of each item from that of each probe."""
        owner = np.repeat(np.arange(len(self.items)), [len(item.probes) for item in self.items])
        return joint_credit(credit_p, owner, [item.need for item in self.items])

    def reference(self) -> ReferenceRates:
        """What scorers without a model get."""
        probes = self.probes
        owner = np.repeat(np.arange(len(self.items)), [len(item.probes) for item in self.items])
        width = max(len(probe.candidates) for probe in probes)
        gold = gold_mask([probe.gold for probe in probes], width)
        named = np.zeros_like(gold)
        for row, probe in enumerate(probes):
            named[row, list(probe.mentioned)] = True
        last = [probe.mentioned[-1] if probe.mentioned else -1 for probe in probes]
        return reference_rates(gold, named, last, owner, [item.need for item in self.items])


CONTROLS = {
    "without": "without the fact",
    "shuffled": "with the facts told of others",
    "query": "of the last turn alone",
}
"""Forms in which the answer must not be found, and what they are."""

LEARNED = 0.5
"""Accuracy, corrected for chance, of a model that has learned to recall: knowing only what was named gives .26."""


@dataclass(frozen=True)
class CanaryReading:
    """What one trained model made of a canary. Accuracies are of items.

    credits     of each item, chosen by what the facts add to log p; templates the cluster of each
    raw         accuracy by log p alone
    controls    accuracy of the first ``n`` items in a form that must not give the answer away, by its name
    reversion   where facts were corrected: how often the old value is chosen
    """

    credits: list[float]
    templates: list[int]
    chance: float
    accuracy: Interval
    raw: Interval
    controls: dict[str, Interval]
    reversion: Reversion | None

    @property
    def answers(self) -> Answers:
        """As ``macro_score`` takes them: one training."""
        return Answers(np.array([self.credits]), np.array(self.templates))


def leak(reading: CanaryReading, reference: ReferenceRates) -> str:
    """Why the items of a reading mean nothing; empty when its controls are as they should be.

    Without the fact, and from the last turn alone, there is nothing to answer from. With the facts told of others a
    model may still pick one that is named; if it is right as often as before, the facts are not what it answers from.
    """
    for form in ("without", "query"):
        found = reading.controls[form]
        if leaks(found, reading.chance):
            return (
                f"{found.value:.2f} are right from the text {CONTROLS[form]}, where chance is {reading.chance:.3g}: "
                "the items give the answer away, or a state outlives its text"
            )
    named = max(reading.chance, reference.bag_of_words)
    if leaks(reading.raw, named) and leaks(reading.controls["shuffled"], named):
        return "as many are right when the facts are told of others: they are not what answers"
    return ""


def has_learned(reading: CanaryReading) -> bool:
    """Whether a reading shows that the lessons can be learned."""
    return kappa(reading.accuracy, reading.chance).value >= LEARNED


def read_canary(
    model: nn.Module, canary: Canary, encode: Encode, *, device: str, num_controls: int = 200
) -> CanaryReading:
    """Score a canary; needs logits only. The forms of ``CONTROLS`` are read of ``num_controls`` items."""
    probes = canary.probes
    whole = log_probabilities(model, [(probe.context, probe.candidates) for probe in probes], encode, device)
    bare = log_probabilities(model, [(probe.null, probe.candidates) for probe in probes], encode, device)
    gold = gold_mask([probe.gold for probe in probes], whole.shape[1])
    added = log_ratio(whole, bare)
    right = canary.joint(credit(added, gold))
    some = canary.first(num_controls)
    old = [probe.old for probe in probes]
    rows = np.array([item.template for item in canary.items for _ in item.probes])
    return CanaryReading(
        right.tolist(),
        canary.templates.tolist(),
        canary.chance,
        clustered_share(right, canary.templates),
        clustered_share(canary.joint(credit(whole, gold)), canary.templates),
        {form: read_form(model, some, form, encode, device=device) for form in CONTROLS},
        reversion(added, [place for place in old if place is not None], [probe.gold[0] for probe in probes], rows)
        if all(place is not None for place in old)
        else None,
    )


def read_form(model: nn.Module, canary: Canary, form: str, encode: Encode, *, device: str) -> Interval:
    """Accuracy of the choice by log p after one form of each context."""
    probes = canary.probes
    scores = log_probabilities(model, [(getattr(probe, form), probe.candidates) for probe in probes], encode, device)
    right = credit(scores, gold_mask([probe.gold for probe in probes], scores.shape[1]))
    return clustered_share(canary.joint(right), canary.templates)


def chosen(model: nn.Module, canary: Canary, encode: Encode, *, device: str) -> Floats:
    """What is chosen by log p after each whole context, ``[probes, k]``, rows of sum 1."""
    return choices(log_probabilities(model, [(p.context, p.candidates) for p in canary.probes], encode, device))


def log_probabilities(
    model: nn.Module, texts: Sequence[tuple[str, tuple[str, ...]]], encode: Encode, device: str
) -> Floats:
    """``log p(candidate | text)`` ``[n, k]`` of texts and their candidates, as many for each; natural logarithms.

    Texts of one batch are padded behind their end, where a causal model cannot look.
    """
    ids = [encode(text) for text, _ in texts]
    words = np.array([[_single(encode, word) for word in candidates] for _, candidates in texts])
    found = np.empty(words.shape)
    # by length, so that a batch is not mostly padding
    order = np.argsort([len(each) for each in ids], kind="stable")
    at = 0
    with observing(model):
        while at < len(order):
            longest = len(ids[order[min(at + 511, len(order) - 1)]])
            rows = order[at : at + max(1, min(512, BATCH_TOKENS[device] // longest))]
            scores = _last_log_softmax(model, [ids[row] for row in rows], device)
            found[rows] = scores.gather(1, torch.from_numpy(words[rows])).numpy()
            at += len(rows)
    return found


def _last_log_softmax(model: nn.Module, ids: Sequence[list[int]], device: str) -> Tensor:
    tokens_BT = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for row, each in enumerate(ids):
        tokens_BT[row, : len(each)] = torch.tensor(each)
    last_B = torch.tensor([len(each) - 1 for each in ids], device=device)
    logits_BTV: Tensor = model(tokens_BT.to(device))
    return logits_BTV[torch.arange(len(ids), device=device), last_B].double().log_softmax(-1).cpu()


def _single(encode: Encode, word: str) -> int:
    [token] = encode(word)
    return token


def score(readings: Sequence[Sequence[CanaryReading]]) -> CanaryScore:
    """Mean over canaries of the readings ``[canaries][seeds]``."""
    return macro_score(
        [Answers(np.array([reading.credits for reading in seeds]), np.array(seeds[0].templates)) for seeds in readings]
    )
