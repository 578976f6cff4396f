"""How many turns a trained model keeps a fact: its answers at several lags, and what it answers without its state."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from harness.figures import LineFigure
from harness.forced_choice import Canary, Encode, log_probabilities
from harness.metrics.clustered import clustered_share
from harness.metrics.forced_choice import credit, gold_mask, log_ratio
from harness.metrics.intervals import Interval
from harness.metrics.persistence import Persistence, persistence

TURNS = (1, 3, 5, 8, 10, 20, 50)
"""Lags at which recall is read: turns from the last fact to the question, which is one of them."""


@dataclass(frozen=True)
class LagReading:
    """Recall at one lag.

    tokens     mean over the items of the tokens that are read after the value was told
    longest    tokens of the longest text, the answer not among them
    credits    of each item, chosen by what the facts add to log p; templates the cluster of each
    raw        the same, chosen by log p alone
    reset      the same by log p, of the last turn alone: the state is reset before it
    """

    turns: int
    tokens: float
    longest: int
    credits: list[float]
    raw: list[float]
    reset: list[float]
    templates: list[int]

    @property
    def accuracy(self) -> Interval:
        """Share of the items that are answered right."""
        return clustered_share(self.credits, self.templates)

    @property
    def raw_accuracy(self) -> Interval:
        """Share that is right by log p alone."""
        return clustered_share(self.raw, self.templates)


@dataclass(frozen=True)
class TurnsReading:
    """Recall over turns. chance is that of a uniform guess."""

    lags: list[LagReading]
    chance: float

    def persistence(self, seed: int) -> Persistence:
        """The curve through the accuracies; ``seed`` resamples templates."""
        return persistence(
            np.concatenate([lag.credits for lag in self.lags]),
            np.concatenate([np.full(len(lag.credits), lag.turns) for lag in self.lags]),
            np.concatenate([lag.templates for lag in self.lags]),
            chance=self.chance,
            seed=seed,
        )

    def at(self, turns: int) -> LagReading:
        """The reading at one of the lags."""
        return next(lag for lag in self.lags if lag.turns == turns)

    @property
    def reset(self) -> Interval:
        """Accuracy over all lags when the state is reset before the question: chance, or the items give it away."""
        return clustered_share(
            np.concatenate([lag.reset for lag in self.lags]), np.concatenate([lag.templates for lag in self.lags])
        )


def read_turns(model: nn.Module, recalls: Mapping[int, Canary], encode: Encode, *, device: str) -> TurnsReading:
    """Read items of one probe each at several lags, ``turns -> items``; needs logits only.

    Raises ``models.config.ContextError`` where a text is longer than the model's learned positions.
    """
    chances = {canary.chance for canary in recalls.values()}
    assert len(chances) == 1, "lags are compared, so they must share their chance"
    lags = [_read_lag(model, turns, recalls[turns], encode, device) for turns in sorted(recalls)]
    return TurnsReading(lags, chances.pop())


def _read_lag(model: nn.Module, turns: int, canary: Canary, encode: Encode, device: str) -> LagReading:
    probes = canary.probes
    assert len(probes) == len(canary.items), "an item of recall is one probe"
    whole, bare, last = (
        log_probabilities(model, [(getattr(probe, form), probe.candidates) for probe in probes], encode, device)
        for form in ("context", "null", "query")
    )
    gold = gold_mask([probe.gold for probe in probes], whole.shape[1])
    texts = [encode(probe.context) for probe in probes]
    since = []
    for text, probe in zip(texts, probes, strict=True):
        [value] = encode(probe.candidates[probe.gold[0]])
        since.append(text[::-1].index(value))
    return LagReading(
        turns,
        float(np.mean(since)),
        max(map(len, texts)),
        credit(log_ratio(whole, bare), gold).tolist(),
        credit(whole, gold).tolist(),
        credit(last, gold).tolist(),
        canary.templates.tolist(),
    )


def turns_figure(readings: Mapping[str, TurnsReading]) -> LineFigure:
    """Accuracy against turns, one line a reading, and chance."""
    chances = {reading.chance for reading in readings.values()}
    lines: dict[str, list[tuple[float, float]]] = {
        name: [(float(lag.turns), lag.accuracy.value) for lag in reading.lags] for name, reading in readings.items()
    }
    lines["chance"] = [(float(turns), chance) for turns in (TURNS[0], TURNS[-1]) for chance in chances]
    title = "Recall of a fact after turns of other text"
    return LineFigure(title, "turns", "accuracy", {"": lines}, x_log=True)
