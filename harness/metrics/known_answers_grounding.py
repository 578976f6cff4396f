"""Known answers of the judgement of text: scorers whose grounding is known, and lines that are code or are not."""

import math

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import code_syntax, forced_choice, grounding
from harness.metrics.clustered import clustered_share
from harness.metrics.expect import expect, expect_between
from harness.metrics.grounding import Grounding

ITEMS, CANDIDATES, NAMED = 60, 10, 3
TOLD = 0.9
"""Probability that a scorer gives to what it goes by."""

Weights = NDArray[np.float64]


def read(about_stated: Weights, about_unstated: Weights, entailed: Weights, contradicted: Weights) -> Grounding:
    """Grounding of a scorer by its probabilities of values ``[n, k]``, the first gold, and of statements ``[n]``."""
    bare = np.log(np.full((ITEMS, CANDIDATES), 1 / CANDIDATES))
    templates = np.arange(ITEMS) // 3
    gold = forced_choice.gold_mask([(0,)] * ITEMS, CANDIDATES)
    right = forced_choice.credit(forced_choice.log_ratio(np.log(about_stated), bare), gold)
    return grounding.grounding(
        clustered_share(right, templates),
        grounding.novelty(forced_choice.log_ratio(np.log(about_unstated), bare), templates),
        grounding.consistency(np.log(entailed), np.log(contradicted), templates),
    )


def going_by(mask_nk: NDArray[np.bool_]) -> Weights:
    """Probabilities that put ``TOLD`` on the candidates of a mask, alike, and the rest on the others."""
    inside = mask_nk.sum(1, keepdims=True)
    return np.asarray(np.where(mask_nk, TOLD / inside, (1 - TOLD) / (CANDIDATES - inside)))


@known_answer("GROUNDING")
def reference_scorers_have_their_grades() -> None:
    """Oracle 1, 1, 1; bag of words 1/3, 0, 1/2; the last mentioned 1/3, 0 and as often as the truth came last."""
    rows = np.arange(ITEMS)
    gold, last, named = (np.zeros((ITEMS, CANDIDATES), np.bool_) for _ in range(3))
    gold[:, 0] = named[:, :NAMED] = True
    # the queried entity's value, the first of three, is the last one mentioned in a third of the dialogues
    last[rows, rows % NAMED] = True
    flat, half = np.full((ITEMS, CANDIDATES), 1 / CANDIDATES), np.full(ITEMS, 0.5)
    sure, newest = np.full(ITEMS, TOLD), np.where(rows % 4 == 0, TOLD, 1 - TOLD)
    oracle = read(going_by(gold), flat, sure, 1 - sure)
    words = read(going_by(named), going_by(named), half, half)
    recent = read(going_by(last), going_by(last), newest, 1 - newest)
    for name, found, want in (
        ("oracle", oracle, (1.0, 1.0, 1.0)),
        ("bag of words", words, (1 / 3, 0.0, 0.5)),
        ("last mentioned", recent, (1 / 3, 0.0, 0.25)),
    ):
        for part, share in zip(("reference", "novelty", "consistency"), want, strict=True):
            expect(f"{part} of {name}", getattr(found, part).value, share, 1e-12)
        expect(f"mean of {name}", found.mean.value, sum(want) / 3, 1e-12)
    assert (oracle.grade, oracle.grounded) == ("A", True), "an oracle is not grounded"
    assert (words.grade, recent.grade) == ("C", "C"), "a heuristic has a good grade"
    # negative control: who hears nothing makes nothing up, and is not grounded for it
    deaf = read(flat, flat, half, half)
    expect("reference of a deaf scorer", deaf.reference.value, 1 / CANDIDATES, 1e-12)
    expect("novelty of a deaf scorer", deaf.novelty.value, 1.0)
    assert (deaf.grade, deaf.grounded) == ("C", False), "a deaf scorer is grounded"


@known_answer("GROUNDING")
def a_mean_hides_no_part() -> None:
    """1, 1 and .6 have the mean of an A and are not grounded; NaN has no grade."""
    whole = grounding.novelty(np.zeros((ITEMS, CANDIDATES)), np.arange(ITEMS))
    part = grounding.consistency(np.where(np.arange(ITEMS) % 5 < 3, -1.0, -2.0), np.full(ITEMS, -1.5), np.arange(ITEMS))
    found = grounding.grounding(whole, whole, part)
    expect("mean of 1, 1 and .6", found.mean.value, 2.6 / 3, 1e-12)
    assert (found.grade, found.grounded) == ("A", False), "a part of .6 is grounded"
    lost = grounding.novelty(np.full((ITEMS, CANDIDATES), math.nan), np.arange(ITEMS))
    expect("novelty of a broken model (negative control)", lost.value, math.nan)
    broken = grounding.grounding(whole, lost, part)
    assert (broken.grade, broken.grounded) == ("", False), "a broken model has a grade"


@known_answer("CODE")
def code_is_told_from_talk() -> None:
    """Whole samples of code count whole, talk counts nothing, a line of code in a reply counts by its length."""
    for code in (
        "def greet(name):\n    return f'Hello {name}'\n",
        "import os\nfor path in os.listdir('.'):\n    print(path)\n",
        'int main(void) {\n    printf("hi\\n");\n    return 0;\n}\n',
        "const total = items.map((x) => x.price);\nif (total == 0) {\n}\n",
    ):
        expect_between(f"share of code in {code.splitlines()[0]!r}", code_syntax.code_share(code), 0.8, 1.0)
    talk = (
        "User: Does Mira still live in Oslo (she moved, didn't she)?\n"
        "Assistant: Yes: with her brother, for two years; she likes it there.\n"
        "User: Return to what I asked. If you had to choose, which class would you import from?\n"
        "Assistant: For example, the first one - and/or the second.\n"
    )
    expect("share of code in talk (negative control)", code_syntax.code_share(talk), 0.0)
    expect("share of code in nothing", code_syntax.code_share(" \n"), 0.0)
    mixed = "Assistant: Her name is Mira.\nAssistant: self.name = mira_name\n"
    expect("share of one line of two", code_syntax.code_share(mixed), 29 / (24 + 29), 1e-12)
    assert code_syntax.looks_like_code(mixed), "half of a reply is code and nothing says so"
    assert not code_syntax.looks_like_code(talk), "talk passes for code"
