"""Code in talk: how often prose is called code, and how often code is missed."""

import re
import sysconfig
import textwrap
from pathlib import Path

import numpy
import pytest

from fixtures.corpora.addresses import Addresses
from harness.known_answers import _registry
from harness.metrics import code_syntax, known_answers_grounding
from harness.metrics.code_syntax import code_share, looks_like_code

KNOWN_ANSWERS = [
    e.function
    for e in _registry.values()
    if e.function.__module__ == known_answers_grounding.__name__ and "CODE" in e.checks
]

PASSAGE = 500


def passages(texts):
    """Whole passages of 500 characters."""
    return [text[at : at + PASSAGE] for text in texts for at in range(0, len(text) - PASSAGE, PASSAGE)]


@pytest.fixture(scope="module")
def prose():
    return passages([document.text for document in Addresses().read().train[::12]])


def rate(texts):
    assert len(texts) > 500
    return sum(map(looks_like_code, texts)) / len(texts)


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


@pytest.mark.parametrize(
    "patterns",
    [
        (),
        # braces and semicolons alone miss Python
        (re.compile(r"[{};]"),),
        # any parenthesis or colon is in talk too
        (*code_syntax._SYNTAX, re.compile(r"[(:;]")),
    ],
)
def test_broken_patterns_fail_the_known_answer(monkeypatch, patterns):
    monkeypatch.setattr(code_syntax, "_SYNTAX", patterns)
    with pytest.raises(AssertionError):
        KNOWN_ANSWERS[0]()


def test_prose_is_not_called_code(prose):
    assert rate(prose) == 0


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nor_is_it_when_lines_begin_anywhere(prose, width):
    wrapped = [textwrap.fill(form, width) for text in prose for form in (text, text.lower())]
    assert rate(wrapped) <= 0.001
    said = [f"User: {text}" for text in wrapped]
    assert rate(said) <= 0.001


def test_python_is_called_code():
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-m]*.py"))
    texts = [path.read_text(errors="replace") for path in files]
    # docstrings, comments and tables of data are among the passages
    assert 0.9 <= rate(passages(texts)) < 1
    whole = [text for text in texts if len(text) > 2000]
    assert sum(map(looks_like_code, whole)) / len(whole) >= 0.99


def test_c_is_called_code():
    headers = sorted(Path(numpy.get_include()).rglob("*.h"))
    assert rate(passages([path.read_text(errors="replace") for path in headers])) >= 0.93


@pytest.mark.parametrize(
    "line",
    [
        "Assistant: I have three reasons: first, it is cheap; second, it is close.",
        "User: What does the class of 1998 import from France?",
        "Assistant: My e-mail is mira.berg@example.org (or so she says).",
        "I told him to return, and he did not return",
        "if you ask me, the answer is 4 (four).",
        "- bread\n- milk\n1. eggs\n2) salt",
        "Speaker 2: No! Yes? ... :-) <3",
        "# A heading\n\n*emphasis* and **more**",
    ],
)
def test_talk_with_punctuation_is_no_code(line):
    assert code_share(line) == 0


@pytest.mark.parametrize(
    "line",
    [
        "def f(x):",
        "    return x + 1",
        "from os import path",
        "if x == 3:",
        "x = y[3]",
        "for i in range(10):",
        "self.memory.append(turn)",
        "let total = 0;",
        "#include <stdio.h>",
        "}",
        "ptr->next = NULL;",
        "@property",
        "```python",
    ],
)
def test_a_line_of_code_is_code(line):
    assert code_share(line) == 1
    assert code_share(f"Assistant: {line.strip()}") > 0.5
