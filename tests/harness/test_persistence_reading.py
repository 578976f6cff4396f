"""Recall over turns: read of a model that remembers so many tokens and no more."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from harness.forced_choice import Canary, Item, Probe
from harness.metrics.forced_choice import leaks
from harness.persistence_reading import read_turns, turns_figure

KEYS, VALUES, FILLER = 6, 10, 40
TURN = 4
LAGS = (1, 3, 5, 8, 10)


def encode(text):
    return [int(token) for token in text.split()]


class Window(nn.Module):
    """Looks the last token up among the last ``tokens`` and puts all weight on what followed it there."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BT):
        logits_BTV = torch.zeros(*tokens_BT.shape, FILLER + 1)
        for b, row in enumerate(tokens_BT.tolist()):
            for t, token in enumerate(row):
                begin = max(0, t - self.tokens)
                if token in row[begin:t]:
                    logits_BTV[b, t, row[begin + row[begin:t].index(token) + 1]] = 20.0
        return logits_BTV


def recalls(count=80, leaky=False):
    generator = np.random.default_rng(5)
    made = {}
    for lag in LAGS:
        items = []
        for index in range(count):
            keys, values = generator.permutation(KEYS)[:3], KEYS + generator.permutation(VALUES)[:3]
            asked = int(generator.integers(3))
            told = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
            other = " ".join([str(FILLER)] * 6)
            between = " ".join([str(FILLER)] * (TURN * lag))
            words = tuple(str(word) for word in KEYS + generator.permutation(VALUES))
            query = (f"{told} " if leaky else "") + str(keys[asked])
            probe = Probe(
                context=f"{told} {between} {keys[asked]}", candidates=words, gold=(words.index(str(values[asked])),),
                null=f"{other} {between} {keys[asked]}", query=query,
            )  # fmt: skip
            items.append(Item((probe,), 1, index % 20))
        made[lag] = Canary(f"lag {lag}", tuple(items), 0.1)
    return made


def test_a_window_is_found_where_it_ends():
    # the first fact of three lies 6 tokens before the turns, so 30 tokens reach over 5 turns and not over 8
    reading = read_turns(Window(30), recalls(), encode, device="cpu")
    assert [lag.turns for lag in reading.lags] == list(LAGS)
    found = {lag.turns: lag.accuracy.value for lag in reading.lags}
    assert found[1] == found[3] == found[5] == 1.0
    assert found[8] == pytest.approx(0.1, abs=1e-9)
    score = reading.persistence(seed=0).score
    assert not score.censored
    assert 5 < score.turns.value < 8
    assert score.turns.ci == (5, 8)


def test_the_distance_in_tokens_is_that_of_the_value():
    reading = read_turns(Window(30), recalls(), encode, device="cpu")
    for lag in reading.lags:
        # of three values in a row: 0, 2 or 4 tokens behind the asked one, then the turns and the question
        assert TURN * lag.turns + 1 <= lag.tokens <= TURN * lag.turns + 5
        assert lag.longest == 6 + TURN * lag.turns + 1
    assert reading.lags[0].tokens == pytest.approx(TURN + 3, abs=0.5)


def test_without_its_state_a_model_is_at_chance():
    reading = read_turns(Window(10_000), recalls(), encode, device="cpu")
    assert reading.persistence(seed=0).score.censored == "above"
    assert reading.reset.value == pytest.approx(0.1)
    assert reading.reset.n == len(LAGS) * 80
    assert not leaks(reading.reset, reading.chance)


def test_a_question_that_tells_the_fact_is_a_leak():
    reading = read_turns(Window(10_000), recalls(leaky=True), encode, device="cpu")
    assert reading.reset.value == 1.0
    assert leaks(reading.reset, reading.chance)


def test_a_model_that_forgets_at_once_is_censored_below():
    reading = read_turns(Window(1), recalls(), encode, device="cpu")
    score = reading.persistence(seed=0).score
    assert score.censored == "below"
    assert score.turns.ci == (0, 1)


def test_the_figure_has_a_line_a_model_and_chance():
    reading = read_turns(Window(30), recalls(), encode, device="cpu")
    figure = turns_figure({"a": reading, "b": dataclasses.replace(reading, lags=reading.lags[:2])})
    [lines] = figure.panels.values()
    assert lines["a"] == [(lag.turns, lag.accuracy.value) for lag in reading.lags]
    assert len(lines["b"]) == 2
    assert [y for _, y in lines["chance"]] == [0.1, 0.1]
