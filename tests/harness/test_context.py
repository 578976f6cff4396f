"""Losses by context against predictors whose loss is known, and what the useful context makes of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness import context, known_answers_context
from harness.checks import load_checks
from harness.context import DOCUMENTS, context_losses, octaves, scored
from harness.data import Split
from harness.known_answers import registered
from harness.known_answers_context import VOCAB, WINDOW, Copier, repeating
from harness.metrics.context import (
    ContextLosses,
    beyond_note,
    context_step,
    degradation,
    doublings,
    key_step,
    long_range_benefit,
    useful_context,
    verdict,
)
from models.stack import ContextError

KNOWN_ANSWERS = {entry.name: entry.function for entry in registered(load_checks()["D4"])}
true_losses = context._losses


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answer_holds(name):
    KNOWN_ANSWERS[name]()


def fails(function):
    try:
        function()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        # twice the context that is claimed
        (context, "_losses", lambda m, x, c, t, **k: true_losses(m, x, min(2 * c, x.shape[1] - 1), t, **k)),
        # every token of a short row is scored: a context of 8 means one of 4 or 5
        (context, "scored", lambda c, targets=32: min(c, targets)),
        (known_answers_context, "long_range_benefit", lambda losses, seed: context_step(losses, 8, 128, seed=seed)),
        (known_answers_context, "useful_context", lambda losses, seed: losses.contexts[-1]),
        (known_answers_context, "key_targets", lambda text, position, near, far: text[position + 1] in text[:position]),
    ],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS.values())


def losses_of(curve: dict[int, float], documents: int = 12) -> ContextLosses:
    """A curve that is the same in every document."""
    sums = {c: [32 * value] * documents for c, value in curve.items()}
    return ContextLosses(list(range(documents)), 32, sums, sums, [32] * documents, {})


class SeesExactly(nn.Module):
    """Loss of a target = ln of how many tokens were read before it, whatever they are."""

    def forward(self, tokens_BT):
        seen_T = torch.arange(1, tokens_BT.shape[1] + 1, dtype=torch.float64)
        p_BTV = ((1 - 1 / seen_T) / (VOCAB - 1))[None, :, None].repeat(len(tokens_BT), 1, VOCAB)
        # every text of this test is a run of threes
        p_BTV[..., 3] = 1 / seen_T
        return p_BTV.log()


class RunsOut(SeesExactly):
    def forward(self, tokens_BT):
        if tokens_BT.shape[1] > 64:
            raise ContextError("this model has 64 learned positions")
        return super().forward(tokens_BT)


def threes():
    from harness.known_answers_context import _windows

    return _windows(np.full((3, WINDOW + 1), 3), 3)


@pytest.mark.parametrize("context", [8, 16, 32, 64, 128, 256])
def test_every_target_sees_more_than_three_quarters_of_the_context_and_no_more_than_all(context):
    losses = context_losses(SeesExactly(), threes(), doublings(8, 256), device="cpu", key_span=256)
    group = min(32, context // 4)
    want = np.log(np.arange(context - group + 1, context + 1)).mean()
    assert scored(context) == group
    assert losses.loss(context).value == pytest.approx(want, abs=1e-6)
    assert losses.loss(context).n == 3


def test_a_context_that_the_model_refuses_is_named_and_so_are_longer_ones():
    losses = context_losses(RunsOut(), threes(), doublings(8, 256), device="cpu", key_span=256)
    assert losses.contexts == [8, 16, 32, 64]
    assert set(losses.refused) == {128, 256}
    assert "64 learned positions" in losses.refused[128]


def test_key_targets_are_averaged_over_themselves_alone():
    sums = {32: [320.0, 320.0], 128: [288.0, 304.0]}
    key_sums = {32: [20.0, 0.0], 128: [8.0, 0.0]}
    losses = ContextLosses([0, 1], 32, sums, key_sums, [4, 0], {})
    assert key_step(losses, 128, 32, seed=0).value == 3.0
    assert context_step(losses, 128, 32, seed=0).value == 0.75
    none = ContextLosses([0, 1], 32, sums, {c: [0.0, 0.0] for c in sums}, [0, 0], {})
    assert math.isnan(key_step(none, 128, 32, seed=0).value)


def test_the_useful_context_follows_the_definition():
    flat = {8: 5.0, 16: 4.5, 32: 4.4, 64: 4.395, 128: 4.395}
    assert useful_context(losses_of(flat), seed=0) == 32
    # gains go on, but a longer context is better by more than .02: the earlier ones do not count
    assert useful_context(losses_of(flat | {128: 4.3}), seed=0) == 128
    # the gain at 32 is lost again later: nothing near the best gained
    assert useful_context(losses_of({8: 4.4, 16: 5.0, 32: 4.5, 64: 4.5}), seed=0) == 0
    assert useful_context(losses_of(dict.fromkeys((8, 16, 32), 4.0)), seed=0) == 0


@pytest.mark.parametrize(("order", "octave"), [(8, (8, 16)), (16, (16, 32)), (64, (64, 128))])
def test_the_useful_context_of_a_source_is_the_octave_of_its_order(order, octave):
    losses = context_losses(Copier(order, 0.8), repeating(order, 0.8), doublings(4, 256), device="cpu", key_span=256)
    assert octave[0] <= useful_context(losses, seed=0) <= octave[1]


def test_a_predictor_that_forgets_has_no_useful_context_where_the_source_has_one():
    # what the check of the useful context must not pass; at the smallest scale it is not asked for
    losses = context_losses(Copier(1, 0.5), repeating(64, 0.8), doublings(4, 256), device="cpu", key_span=256)
    assert useful_context(losses, seed=0) / 64 < 0.25


def test_an_interval_is_over_documents():
    windows = repeating(16, 0.8, documents=6)
    losses = context_losses(Copier(16, 0.8), windows, [8, 256], device="cpu", key_span=256)
    assert context_step(losses, 8, 256, seed=0).n_clusters == 6
    assert losses.num_documents == 6


def test_perplexity_that_explodes_is_infinite_rather_than_an_error():
    ratio = degradation(losses_of({256: 5.0, 512: 2000.0}), 256, 512, seed=0)
    assert ratio.ci == (math.inf, math.inf)


def test_what_a_benefit_and_a_rise_are_called():
    assert [verdict(x) for x in (0.049, 0.05, 0.15)] == ["", "good", "strong"]
    assert (beyond_note(1.1), beyond_note(1.2)) == ("", "perplexity is up by more than 10%")


def test_benefit_is_a_share_of_the_loss_at_the_short_context():
    assert long_range_benefit(losses_of({8: 5.0, 128: 4.0}), seed=0).value == pytest.approx(0.2)


def test_octaves_end_where_documents_do():
    lengths = [5000] * DOCUMENTS + [600] * 20
    split = Split(np.zeros(sum(lengths), np.uint16), np.cumsum([0, *lengths]), ("d",) * len(lengths), 0)
    assert octaves(split, 512, beyond=True) == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert octaves(split, 512, beyond=False) == [32, 64, 128, 256, 512]
    assert octaves(split, 8192, beyond=True) == []
