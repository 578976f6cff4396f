"""Known answers of SB1 and SB2: models that look everything up, keep what was told first, or count without end."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.known_answers import known_answer
from harness.labelled import IGNORED, Examples
from harness.metrics.expect import expect, expect_between
from harness.metrics.forced_choice import leaks
from harness.state_benchmarks import accuracy_beyond, follow_updates, use_of_state

KEYS, VALUES, TOLD = 8, 16, 4
CPU = torch.float32


def recall_examples(count: int, *, changes: int = 0, seed: int = 0) -> Examples:
    """``TOLD`` pairs of a key and a value; ``changes`` of them again with another value; two of the keys, asked."""
    generator = np.random.default_rng([52, seed])
    keys = generator.permuted(np.tile(np.arange(KEYS), (count, 1)), axis=1)[:, :TOLD]
    first = generator.integers(VALUES, size=(count, TOLD))
    last = first.copy()
    last[:, :changes] = (first[:, :changes] + generator.integers(1, VALUES, size=(count, changes))) % VALUES
    told = np.stack([keys, KEYS + first], 2).reshape(count, -1)
    again = np.stack([keys, KEYS + last], 2)[:, :changes].reshape(count, -1)
    asked = generator.permuted(np.tile(np.arange(TOLD), (count, 1)), axis=1)[:, :2]
    queries, answers, before = (np.take_along_axis(each, asked, 1) for each in (keys, last, first))
    inputs = np.concatenate([told, again, queries], 1)
    labels = np.full(inputs.shape, IGNORED, np.int32)
    labels[:, -2:] = KEYS + answers
    stale = np.full(inputs.shape, IGNORED, np.int32)
    stale[:, -2:] = np.where(answers == before, IGNORED, KEYS + before)
    starts = tuple(dict.fromkeys((0, 2 * TOLD, inputs.shape[1] - 2)))
    return Examples(inputs.astype(np.uint16), labels, KEYS + VALUES, 1 / VALUES, starts, stale)


class Lookup(nn.Module):
    """Answers with what followed the same token before: the last time, or the first. Knows nothing else."""

    def __init__(self, vocab_size: int, *, latest: bool) -> None:
        super().__init__()
        self.vocab_size, self.latest = vocab_size, latest

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B, T, V]``; level over the vocabulary where nothing is known."""
        T = tokens_BT.shape[1]
        earlier_TT = torch.ones(T, T).tril(-2)
        weights_T = torch.arange(1, T + 1) if self.latest else torch.arange(T, 0, -1)
        same_BTT = (tokens_BT[:, :, None] == tokens_BT[:, None]) * earlier_TT * weights_T
        best_BT = same_BTT.argmax(-1)
        followed_BT = tokens_BT.gather(1, (best_BT + 1).clamp(max=T - 1))
        known_BT1 = (same_BTT.amax(-1) > 0)[..., None]
        return known_BT1 * F.one_hot(followed_BT, self.vocab_size).float()


class Parity(nn.Module):
    """The sum modulo 2 of the last ``span`` tokens: of a state without decay where that is all of them."""

    def __init__(self, span: int) -> None:
        super().__init__()
        self.span = span

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B, T, 2]``."""
        total_BT = tokens_BT.cumsum(1)
        gone_BT = F.pad(total_BT, (self.span, 0))[:, : tokens_BT.shape[1]]
        return F.one_hot((total_BT - gone_BT) % 2, 2).float()


class Seer(nn.Module):
    """Says for each key the value ``KEYS`` on, without having been told."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B, T, V]``."""
        return F.one_hot((tokens_BT + KEYS) % (KEYS + VALUES), KEYS + VALUES).float()


@known_answer("SB1", "SB2")
def a_state_that_holds_all_is_worth_all() -> None:
    """A lookup is right with its state and knows nothing without; whoever needs no state gains nothing and leaks."""
    examples = recall_examples(200)
    use = use_of_state(Lookup(KEYS + VALUES, latest=True), examples, device="cpu", dtype=CPU, seed=0)
    expect("accuracy of a lookup", use.carried.value, 1.0)
    expect("accuracy after a reset", use.blind.value, 0.0)
    expect("what its state is worth", use.gain.value, 1.0)
    assert not leaks(use.blind, use.chance), "a lookup after a reset knows nothing"
    given = recall_examples(200)
    asked = given.labels != IGNORED
    given.labels[asked] = given.inputs[asked].astype(np.int32) + KEYS
    seer = use_of_state(Seer(), given, device="cpu", dtype=CPU, seed=0)
    expect("gain where the key says its value (negative control)", seer.gain.value, 0.0)
    assert leaks(seer.blind, seer.chance), "answers without a state must be seen as a leak"


@known_answer("SB2")
def what_was_told_first_is_not_what_holds() -> None:
    """Of changed values the last is current and the first is stale; the state of both models is worth the same."""
    examples = recall_examples(300, changes=2)
    for latest, margin in ((True, 1.0), (False, -1.0)):
        model = Lookup(KEYS + VALUES, latest=latest)
        found = follow_updates(model, examples, device="cpu", dtype=CPU, seed=0)
        expect(f"current less stale, latest={latest}", found.margin.value, margin)
        use = use_of_state(model, examples, device="cpu", dtype=CPU, seed=0)
        expect_between("and yet its state is worth something", use.gain.value, 0.3, 1.0)


@known_answer("SB2")
def parity_is_told_from_a_window() -> None:
    """Counting without end is right far beyond any length, counting the last 60 tokens is a coin."""
    bits = np.random.default_rng(53).integers(2, size=(300, 160))
    labels = (bits.cumsum(1) % 2).astype(np.int32)
    examples = Examples(bits.astype(np.uint16), labels, 2, 0.5)
    endless = accuracy_beyond(Parity(160), examples, 120, device="cpu", dtype=CPU)
    expect("parity of all", endless.value, 1.0)
    window = accuracy_beyond(Parity(60), examples, 120, device="cpu", dtype=CPU)
    expect("parity of the last 60 (negative control)", window.value, 0.5, 0.03)
