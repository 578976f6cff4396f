"""Grounding beyond its known answers: ties, limits, and metrics broken on purpose."""

import math
import time

import numpy as np
import pytest
from registered_answers import fails

from harness.known_answers import _registry
from harness.metrics import grounding, known_answers_grounding
from harness.metrics.grounding import Grounding, consistency, novelty
from harness.metrics.intervals import Interval

KNOWN_ANSWERS = [
    e.function
    for e in _registry.values()
    if e.function.__module__ == known_answers_grounding.__name__ and "GROUNDING" in e.checks
]


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_they_are_fast():
    started = time.process_time()
    for function in KNOWN_ANSWERS:
        function()
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        # what is asserted is also what loses: only rises counted, or nothing at all
        ("novelty", lambda ratios, clusters: novelty(np.zeros_like(ratios), clusters)),
        # a level pair taken for consistent
        ("consistency", lambda yes, no, clusters: consistency(np.asarray(yes) + 1e-6, no, clusters)),
        ("EACH_AT_LEAST", 0.5),
        ("A_ABOVE", 0.9),
    ],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, name, broken):
    monkeypatch.setattr(grounding, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


def share(value):
    return Interval(value, value - 0.05, value + 0.05, 400, 40)


@pytest.mark.parametrize(
    ("parts", "grade", "grounded"),
    [
        ((1.0, 1.0, 1.0), "A", True),
        ((0.8, 0.8, 0.8), "B", True),
        ((0.7, 0.7, 0.7), "C", True),
        ((1.0, 1.0, 0.69), "A", False),
        ((0.1, 1.0, 0.5), "C", False),
        ((math.nan, 1.0, 1.0), "", False),
    ],
)
def test_grades(parts, grade, grounded):
    found = grounding.grounding(*(share(part) for part in parts))
    assert (found.grade, found.grounded) == (grade, grounded)


def test_the_mean_is_known_better_than_its_parts():
    found = grounding.grounding(share(0.8), share(0.9), share(0.7))
    assert found.mean.value == pytest.approx(0.8)
    assert found.mean.high - found.mean.value == pytest.approx(0.05 / math.sqrt(3))
    assert (found.mean.n, found.mean.n_clusters) == (1200, 120)


def test_what_the_context_moves_either_way_is_asserted():
    clusters = np.arange(4)
    ratios = np.array([[0.0, 0.5], [0.0, -0.5], [0.0, 0.51], [0.0, -0.51]])
    assert novelty(ratios, clusters).value == 0.5


def test_consistency_of_level_and_impossible_pairs():
    clusters = np.arange(4)
    yes, no = [-1.0, -2.0, -1.0, -math.inf], [-2.0, -1.0, -1.0, -math.inf]
    assert consistency(yes, no, clusters).value == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert math.isnan(consistency([math.nan, -1.0], [-1.0, -2.0], [0, 1]).value)


def test_a_grounding_is_plain_numbers():
    found = grounding.grounding(share(0.8), share(0.9), share(0.7))
    assert isinstance(found, Grounding)
    assert found.grade == "B"
