"""The known answers of the ablation hold, are fast, and fail when what they vouch for is broken."""

import math
import time

import numpy as np
import pytest

from harness import known_answers_ablation as known
from harness.known_answers import _registry
from harness.metrics.interaction import interaction, loss_shares
from harness.metrics.intervals import ClusterRatio
from models.protocol import State

FUNCTIONS = [entry.function for entry in _registry.values() if entry.function.__module__ == known.__name__]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_together_they_take_less_than_a_second():
    started = time.process_time()
    for function in FUNCTIONS:
        function()
    assert time.process_time() - started < 1


true_swap, true_continue, true_interaction = known.swap, known.continue_from, known.interaction


def swap_of_the_first_layer_of_everything(state, donor, branches, kinds="long"):
    return true_swap(state, donor, state.branches, kinds)


def swap_that_forgets_to(state, donor, branches, kinds="long"):
    return state


def always_from_nothing(model, clean, ablations, inputs, targets, batch_size):
    return true_continue(model, clean, {name: s.zeros() for name, s in ablations.items()}, inputs, targets, batch_size)


def mean_by_row(state):
    return State.map(state, lambda _, tensor: tensor)


BROKEN = [
    ("swap", swap_of_the_first_layer_of_everything),
    ("swap", swap_that_forgets_to),
    ("continue_from", always_from_nothing),
    ("mean_state", mean_by_row),
    ("zero_state", mean_by_row),
    ("interaction", lambda effects, together: together),
    ("interaction", lambda effects, together: true_interaction({"first": effects["first"]}, together)),
    ("loss_shares", lambda effects: dict.fromkeys(effects, effects["first"])),
    ("divergences", lambda p, q: (p.exp() * (p - q)).sum(-1)),
    ("divergences", lambda p, q: known.divergences_of_swapped(q, p)),
    ("donors", lambda documents, seed: np.arange(len(documents))),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[f"{row[0]}-{index}" for index, row in enumerate(BROKEN)])
def test_what_is_broken_fails_a_known_answer(monkeypatch, name, broken):
    true = known.divergences
    monkeypatch.setattr(known, "divergences_of_swapped", true, raising=False)
    monkeypatch.setattr(known, name, broken)
    failures = 0
    for function in FUNCTIONS:
        try:
            function()
        except AssertionError:
            failures += 1
    assert failures >= 1


def by_document(*values):
    return ClusterRatio(np.array(values, dtype=float), np.full(len(values), 2.0), len(values))


def test_interaction_and_shares_by_hand():
    effects = {"a": by_document(1, 2), "b": by_document(3, 0)}
    assert interaction(effects, by_document(5, 5)).value == pytest.approx((10 - 6) / 4)
    shares = loss_shares(effects)
    assert (shares["a"].value, shares["b"].value) == (0.5, 0.5)
    assert math.isnan(loss_shares({"a": by_document(1), "b": by_document(-1)})["a"].value)


def test_effects_on_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same windows"):
        loss_shares({"a": by_document(1, 2), "b": ClusterRatio(np.ones(2), np.ones(2), 2)})
