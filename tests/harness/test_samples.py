"""Samples and code in what is said: known perplexities, text that is code, and known answers that can fail."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.mutants.speech import BIAS, close_braces, waver
from fixtures.tokenizers import BYTE_IDS
from harness.checks import load_checks
from harness.known_answers import registered
from harness.metrics import diversity, known_answers_generation, sampling
from harness.metrics.code_syntax import looks_like_code
from harness.samples import TEMPERATURE, TOP_P, read_code, read_samples

KNOWN_ANSWERS = [
    entry.function
    for entry in registered(load_checks()["SAMPLES"])
    if entry.function.__module__ == known_answers_generation.__name__
]
V = 320
LETTERS = {index: letter for letter, index in BYTE_IDS.items()}


class Babble(nn.Module):
    """Every token equally likely after any text."""

    def __init__(self, only=range(V)):
        super().__init__()
        self.logits_V = torch.full((V,), -math.inf)
        self.logits_V[list(only)] = 0.0

    def forward(self, tokens_BT):
        return self.logits_V.expand(*tokens_BT.shape, -1)


def encode(text):
    return [1 + ord(letter) % 50 for letter in text]


def decode(ids):
    return "".join({"Ċ": "\n", "Ġ": " "}.get(letter := LETTERS.get(token, "?"), letter) for token in ids)


def samples(model, **options):
    unigram = lambda ids: np.full(len(ids), -math.log(7))  # noqa: E731
    return read_samples(model, ["one", "three"], encode, decode, unigram, tokens=40, seed=0, device="cpu", **options)


def fails(function):
    try:
        function()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        # the nucleus left out; the temperature left out; n-grams that are not counted in order
        (sampling, "choose", lambda p, u, *, temperature, top_p: true_choose(p, u, temperature=temperature, top_p=1.0)),
        (sampling, "choose", lambda p, u, *, temperature, top_p: true_choose(p, u, temperature=1.0, top_p=top_p)),
        (diversity, "distinct", lambda texts, n: len({t for text in texts for t in text}) / sum(map(len, texts))),
        (diversity, "repetition", lambda texts: 1 - diversity.distinct(texts, 4)),
    ],
    ids=["no nucleus", "no temperature", "words for n-grams", "across texts"],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


true_choose = sampling.choose


def test_impossible_distributions_are_refused():
    for row in ([math.nan, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(ValueError, match="nothing to draw from"):
            sampling.choose([row], [0.5], temperature=1.0, top_p=1.0)


def test_perplexities_are_those_of_the_whole_distribution():
    found = samples(Babble())
    # the nucleus leaves out 5 % of equal tokens, and what is said still costs ln V
    assert found.perplexity == pytest.approx(V)
    assert found.unigram == pytest.approx(7)
    assert found.repeatable
    assert found.prompts == ["one", "three"]
    assert all(len(text) == 40 for text in found.texts)


def test_a_loop_has_no_diversity():
    found = samples(Babble(only=[3]))
    assert found.perplexity == pytest.approx(1)
    assert found.diversity.distinct_1 == pytest.approx(1 / 80)
    assert found.diversity.repetition == pytest.approx(36 / 37)


def test_logits_that_waver_are_not_repeatable():
    model = Babble().eval()
    waver(model)
    assert not samples(model).repeatable


def test_braces_are_code_and_letters_are_not():
    natural = [(encode("a plain sentence"), 0), ([BYTE_IDS["}"], BYTE_IDS["Ċ"]], 1)]
    letters = [BYTE_IDS[letter] for letter in "abcdefgh"]
    options = {"count": 3, "tokens": 20, "seed": 0, "device": "cpu"}
    talk = read_code(Babble(only=letters), ["hello", "you"], encode, decode, natural, **options)
    assert talk.share.value == 0
    assert (talk.share.n, talk.share.n_clusters) == (6, 2)
    assert talk.corpus.value == 0.5
    assert talk.example == ""

    mutant = Babble().eval()
    close_braces(mutant)
    code = read_code(mutant, ["hello", "you"], encode, decode, natural[:1], **options)
    assert code.share.value == 1
    assert looks_like_code(code.example)
    # a training does not see it
    assert torch.equal(mutant.train()(torch.zeros(1, 1, dtype=torch.int64)), Babble()(torch.zeros(1, 1)))


def test_the_planted_bias_leaves_nothing_else_to_say():
    # even beside a model that is as sure of something else as trained ones are
    assert math.exp((BIAS - 25) / TEMPERATURE) / (math.exp((BIAS - 25) / TEMPERATURE) + V) > TOP_P


def test_a_corpus_of_code_is_known_for_one():
    brace = [BYTE_IDS["}"], BYTE_IDS["Ċ"]]
    corpus = [(brace, document) for document in range(20)]
    options = {"count": 1, "tokens": 4, "seed": 0, "device": "cpu"}
    assert read_code(Babble(only=brace), ["a"], encode, decode, corpus, **options).learned_from_code
    few = [(brace if document == 0 else [BYTE_IDS["a"]], document) for document in range(20)]
    assert not read_code(Babble(only=brace), ["a"], encode, decode, few, **options).learned_from_code
