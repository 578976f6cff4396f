"""Known answers of D4 and of the useful context: sources whose loss by context is known, read by exact predictors."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from harness.context import context_losses, scored
from harness.data import Split, Windows
from harness.known_answers import known_answer
from harness.metrics.context import (
    LONG,
    SHORT,
    ContextLosses,
    context_step,
    degradation,
    doublings,
    key_targets,
    long_range_benefit,
    useful_context,
)
from harness.metrics.expect import expect, expect_between

VOCAB = 17
WINDOW = 256


class Copier(nn.Module):
    """The exact predictor of a source that repeats the token ``order`` places back with probability ``keep``.

    Where fewer than ``order`` tokens were read it is uniform. It remembers no more than ``order`` tokens.
    """

    def __init__(self, order: int, keep: float) -> None:
        super().__init__()
        self.order, self.keep = order, keep

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities ``[B, T, V]``."""
        p_BTV = torch.full((*tokens_BT.shape, VOCAB), 1 / VOCAB, dtype=torch.float64)
        seen = tokens_BT.shape[1] - self.order + 1
        if seen > 0:
            other = (1 - self.keep) / VOCAB
            p_BTV[:, self.order - 1 :] = other
            p_BTV[:, self.order - 1 :].scatter_(2, tokens_BT[:, :seen, None], self.keep + other)
        return p_BTV.log()


class Learner(nn.Module):
    """Knows that x + 1 follows x and is the surer the more it has read: its loss after k tokens is ``loss(k)``."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities ``[B, T, V]``."""
        right_T = torch.exp(-self.loss(torch.arange(1, tokens_BT.shape[1] + 1, dtype=torch.float64)))
        p_BTV = ((1 - right_T) / (VOCAB - 1))[None, :, None].repeat(len(tokens_BT), 1, VOCAB)
        p_BTV.scatter_(2, ((tokens_BT + 1) % VOCAB)[..., None], right_T[None, :, None].expand(len(tokens_BT), -1, 1))
        return p_BTV.log()


def _windows(tokens: np.ndarray, documents: int) -> Windows:
    """One window of ``WINDOW`` tokens a document."""
    offsets = np.arange(documents + 1) * (WINDOW + 1)
    split = Split(tokens.astype(np.uint16).ravel(), offsets, tuple(f"{i}" for i in range(documents)), 0)
    return Windows.of(split, WINDOW, documents)


def repeating(order: int, keep: float, documents: int = 24, seed: int = 0) -> Windows:
    """Windows of the source that ``Copier`` predicts; ``keep`` 0 is noise."""
    generator = np.random.default_rng(seed)
    text = generator.integers(0, VOCAB, size=(documents, WINDOW + 1))
    copied = generator.random(text.shape) < keep
    for place in range(order, WINDOW + 1):
        text[:, place] = np.where(copied[:, place], text[:, place - order], text[:, place])
    return _windows(text, documents)


def _measure(model: nn.Module, windows: Windows) -> ContextLosses:
    return context_losses(model, windows, doublings(SHORT, WINDOW), device="cpu", key_span=WINDOW)


@known_answer("D4", "UCW")
def a_markov_source_is_learnt_at_its_order_and_gains_nothing_after() -> None:
    """L(c) = ln V below the order, the entropy rate from the order on; the useful context is the order's octave."""
    losses = _measure(Copier(16, 0.8), repeating(16, 0.8))
    right, other = 0.8 + 0.2 / VOCAB, 0.2 / VOCAB
    rate = -right * math.log(right) - (VOCAB - 1) * other * math.log(other)
    expect("loss below the order", losses.loss(8).value, math.log(VOCAB), 1e-6)
    expect("loss from the order on", losses.loss(32).value, rate, 0.15)
    for shorter, longer in ((32, 64), (64, 128), (128, 256)):
        step = context_step(losses, shorter, longer, seed=0)
        expect(f"gain from {shorter} to {longer}", step.value, 0.0, 1e-9)
        expect(f"its interval, {shorter} to {longer}", step.high - step.low, 0.0, 1e-9)
    expect_between("useful context of order 16", useful_context(losses, seed=0), 16, 32)
    expect("perplexity beyond 128", degradation(losses, 128, 256, seed=0).value, 1.0, 1e-9)


@known_answer("D4", "UCW")
def noise_and_a_predictor_without_memory_gain_nothing() -> None:
    """Negative control: on noise, and for a model that reads one token back, no context helps."""
    uniform = _measure(Copier(WINDOW + 1, 0.8), repeating(16, 0.8))
    expect("benefit of a uniform model", long_range_benefit(uniform, seed=0).value, 0.0, 1e-12)
    last = _measure(Copier(1, 0.5), repeating(16, 0.8))
    expect("benefit of one token's memory", long_range_benefit(last, seed=0).value, 0.0, 1e-9)
    expect("useful context of one token's memory", useful_context(last, seed=0), 0)
    noise = _measure(Copier(16, 0.8), repeating(16, 0.0))
    expect_between("benefit of expecting repeats in noise", long_range_benefit(noise, seed=0).high, -9.0, -0.01)


@known_answer("D4")
def the_targets_do_not_move() -> None:
    """A loss of 1 + 3 k^-1/2 after k tokens gives the benefit of that curve; averages over whole rows inflate it."""

    def loss(k: Tensor) -> Tensor:
        return 1 + 3 * k**-0.5

    ordered = np.arange(24)[:, None] * 5 + np.arange(WINDOW + 1)
    losses = _measure(Learner(loss), _windows(ordered % VOCAB, 24))

    def mean(first: int, last: int) -> float:
        return float(loss(torch.arange(first, last + 1, dtype=torch.float64)).mean())

    true = {c: mean(c - scored(c) + 1, c) for c in (SHORT, LONG)}
    benefit = long_range_benefit(losses, seed=0).value
    expect("benefit of a known curve", benefit, 1 - true[LONG] / true[SHORT], 1e-6)
    expect("the same in nats", context_step(losses, LONG, SHORT, seed=0).value, true[SHORT] - true[LONG], 1e-6)
    # negative control: averaging over all positions of the longer rows measures other targets
    moving = mean(1, SHORT) - mean(1, LONG)
    expect_between("what moving targets would add, nats", moving - (true[SHORT] - true[LONG]), 0.1, 9.0)


@known_answer("D4")
def a_model_that_breaks_past_its_length_is_seen() -> None:
    """Losses that double past 128 tokens: the perplexity rises by exp of the difference, and the step is positive."""
    ordered = np.arange(24)[:, None] * 5 + np.arange(WINDOW + 1)

    def loss(k: Tensor) -> Tensor:
        return torch.where(k > LONG, 2.0, 1.0)

    losses = _measure(Learner(loss), _windows(ordered % VOCAB, 24))
    expect("rise of perplexity", degradation(losses, LONG, WINDOW, seed=0).value, math.e, 1e-6)
    expect("step", context_step(losses, LONG, WINDOW, seed=0).low, 1.0, 1e-6)
    expect("benefit within", long_range_benefit(losses, seed=0).value, 0.0, 1e-9)


@known_answer("D4")
def key_tokens_are_those_said_before_but_not_lately() -> None:
    """The text decides: said at most ``far`` tokens back and none of the last ``near``."""
    text = np.zeros(101, dtype=np.int64)
    text[100] = 7
    for place, near, far, want in (
        (40, 32, 100, 1),
        (40, 64, 100, 0),
        (40, 32, 50, 0),
        (99, 32, 100, 0),
        (70, 32, 32, 0),
    ):
        said = text.copy()
        said[place] = 7
        expect(f"said at {place}, near {near}, far {far}", float(key_targets(said, 99, near, far)), want)
    expect("never said", float(key_targets(text, 99, 32, 100)), 0)
