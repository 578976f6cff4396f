"""What the state is worth in a task that was learned: answers with the state, beside answers after a reset.

A reset is before a turn: the model reads the text from there on, from a fresh state. What the state alone can tell it
is then gone, for a recurrent state and for a cache of keys alike.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from harness.labelled import IGNORED, Examples
from harness.labelled_training import accuracy, predictions, right_shares
from harness.metrics.intervals import Interval
from harness.metrics.paired import paired_difference


@dataclass(frozen=True)
class StateUse:
    """Accuracy on the last turn of one task, read whole and read from some turn on.

    carried  accuracy when the text is read whole
    reset    the same by the turn before which the state was reset; the last turn comes last
    gain     carried less reset before the last turn, paired over the examples
    """

    carried: Interval
    reset: dict[int, Interval]
    gain: Interval
    chance: float

    @property
    def blind(self) -> Interval:
        """Accuracy from the last turn alone: chance, or the task gives its answers away."""
        return self.reset[max(self.reset)]


def use_of_state(
    model: nn.Module, examples: Examples, *, device: str, dtype: torch.dtype, seed: int
) -> StateUse:  # fmt: skip
    """Read what is asked in the last turn; ``seed`` draws the resamples of the examples.

    Every example must ask something in its last turn, and have a turn before it.
    """
    assert len(examples.turn_starts) > 1, "without a turn before the last there is nothing to forget"
    last = examples.turn_starts[-1]
    asked = examples.labels[:, last:]
    assert (asked != IGNORED).any(1).all(), "every example asks something in its last turn"
    whole = predictions(model, examples, device=device, dtype=dtype)[:, last:]
    reset, blind = {}, whole
    for turn, start in enumerate(examples.turn_starts[1:], 1):
        tail = _from(examples, start)
        blind = predictions(model, tail, device=device, dtype=dtype)[:, last - start :]
        reset[turn] = accuracy(blind, asked)
    gain = paired_difference(right_shares(blind, asked), right_shares(whole, asked), np.ones(len(asked)), seed=seed)
    return StateUse(accuracy(whole, asked), reset, gain.over_items, examples.chance)


def _from(examples: Examples, start: int) -> Examples:
    """The examples from a column on, as if nothing had been before."""
    stale = examples.stale_values
    return replace(
        examples,
        inputs=examples.inputs[:, start:],
        labels=examples.labels[:, start:],
        turn_starts=(0,),
        stale_values=stale[:, start:] if stale.size else stale,
    )


@dataclass(frozen=True)
class Updates:
    """Questions whose answer has changed since it was first told.

    current, stale  share answered by what holds now, and by what was told first
    margin          current less stale, paired over the examples: below 0 for a model that keeps what was told first
    """

    current: Interval
    stale: Interval
    margin: Interval


def follow_updates(
    model: nn.Module, examples: Examples, *, device: str, dtype: torch.dtype, seed: int
) -> Updates:  # fmt: skip
    """Whether changes are followed, in examples with ``stale_values``; ``seed`` draws the resamples."""
    stale = examples.stale_values
    assert stale.size, "a task whose answers change says what they were"
    changed = np.where(stale != IGNORED, examples.labels, IGNORED)
    found = predictions(model, examples, device=device, dtype=dtype)
    now, before = right_shares(found, changed), right_shares(found, stale)
    margin = paired_difference(before, now, np.ones(len(now)), seed=seed)
    return Updates(accuracy(found, changed), accuracy(found, stale), margin.over_items)


def accuracy_beyond(
    model: nn.Module, examples: Examples, column: int, *, device: str, dtype: torch.dtype
) -> Interval:  # fmt: skip
    """Accuracy on what is asked from ``column`` on, the text before it read too."""
    labels = examples.labels.copy()
    labels[:, :column] = IGNORED
    return accuracy(predictions(model, examples, device=device, dtype=dtype), labels)
