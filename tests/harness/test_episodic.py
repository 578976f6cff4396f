"""Probes, sketches and transplants beyond their known answers."""

import numpy as np
import pytest
import torch

from harness import episodic, known_answers_episodic, needle
from harness.checks import load_checks
from harness.episodic import proportion, transplants
from harness.known_answers import registered
from harness.known_answers_episodic import CHOICES, CLASSES, Ledger, toy_prompts
from harness.metrics.probe import choose_penalty, fit_probe, usable_information
from harness.state_sketch import Sketcher
from models.protocol import State

true_read_prompts = episodic.read_prompts
KNOWN_ANSWERS = {entry.name: entry.function for entry in registered(load_checks()["MEMORY"])}


def fails(function):
    try:
        function()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answer_holds(name):
    KNOWN_ANSWERS[name]()


@pytest.mark.parametrize(
    ("place", "name", "broken"),
    [
        # information of the labels that the probe would like, not of those that are true
        ("usable_information", "usable_information", lambda probe, x, y: probe.log_probabilities(x).max(1) + 2.3),
        # a scorer that forgets the question
        ("read_needles", "choice_scores", lambda model, tokens, choices: torch.zeros(len(tokens), len(choices))),
        # states before the query passed off as states after it
        ("probe_memory", "read_prompts", lambda *a, **k: (true_read_prompts(*a, **k)[0],) * 2),
    ],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, place, name, broken):
    modules = {"usable_information": known_answers_episodic, "read_needles": needle, "probe_memory": episodic}
    monkeypatch.setattr(modules[place], name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS.values())


def test_a_probe_is_the_minimum_of_its_objective():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 4)), generator.integers(3, size=60)
    probe = fit_probe(x, y, 3, 0.1)
    # the same problem in float64 autograd: the gradient vanishes at the answer
    standard = torch.from_numpy((x - x.mean(0)) / x.std(0))
    weights, bias = torch.from_numpy(probe.weights).requires_grad_(), torch.from_numpy(probe.bias).requires_grad_()
    loss = torch.nn.functional.cross_entropy(standard @ weights + bias, torch.from_numpy(y))
    (loss + 0.05 * (weights**2).sum()).backward()
    assert float(weights.grad.abs().max()) < 1e-4
    assert float(bias.grad.abs().max()) < 1e-4


def test_information_is_measured_against_the_frequencies_of_training():
    x, y = np.zeros((40, 2)), np.array([0] * 30 + [1] * 10)
    probe = fit_probe(x, y, 2, 0.1)
    assert probe.prior == pytest.approx([31 / 42, 11 / 42])
    assert usable_information(probe, x[:1], y[:1]) == pytest.approx([np.log(30 / 40) - np.log(31 / 42)], abs=1e-4)


def test_a_strong_penalty_is_chosen_for_noise_and_a_weak_one_for_a_clear_code():
    generator = np.random.default_rng(1)
    y, groups = generator.integers(4, size=240), np.arange(240) // 8
    noise = generator.standard_normal((240, 60))
    code = noise + 6 * np.eye(60)[y]
    assert choose_penalty(noise, y, groups, 4)[0] == 10.0
    assert choose_penalty(code, y, groups, 4)[0] == 0.1


def test_a_sketch_does_not_depend_on_scale_or_offset_of_the_state():
    state = torch.randn(20, 7, 9, generator=torch.Generator().manual_seed(3))

    def sketched(tensor):
        return Sketcher(16, 0)(State.of([{"b": {"s": tensor}}]), "")[0, "b"]

    torch.testing.assert_close(sketched(state), sketched(1e-3 * state + 5.0), rtol=1e-2, atol=1e-2)


def test_token_shifts_and_convolution_tails_are_not_probed():
    state = State.of([{"b": {"conv": torch.randn(4, 3), "shift_att": torch.randn(4, 3)}}])
    assert Sketcher(16, 0)(state, "") == {}


def test_items_of_one_document_count_less():
    right = np.arange(40) % 2 == 0
    alone, together = proportion(right, np.arange(40)), proportion(right, np.arange(40) // 8)
    assert together.high - together.low > alone.high - alone.low


def test_a_transplant_of_a_state_that_holds_nothing_moves_nothing():
    test = toy_prompts()["test"].first(40)
    [full] = transplants(Ledger("all"), test, CHOICES, device="cpu")
    [empty] = transplants(Ledger("nothing"), test, CHOICES, device="cpu")
    assert (full.followed, full.differing, full.prompts) == (40, 40, 40)
    assert (empty.followed, empty.differing) == (0, 0)


def test_toy_prompts_are_balanced_enough_to_have_a_chance_of_a_tenth():
    counts = np.bincount(toy_prompts()["train"].values, minlength=CLASSES)
    assert counts.min() >= 6
