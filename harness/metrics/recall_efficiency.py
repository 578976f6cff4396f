r"""How much of a recurrent state is recalled: bits of the values that come back, over the bits of the state.

    bits recalled = acc_adj * pairs * log2 |V|,   acc_adj = (acc - 1 / |V|) / (1 - 1 / |V|)
    efficiency    = bits recalled / (8 * bytes of state)

A table that holds a share of the pairs and guesses at the others holds exactly so many bits. An answer that is wrong
without looking like a guess may hold more, so this is what comes back and not a bound on what is stored. Keys are not
counted: a state that had to hold them too cannot reach 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.metrics.intervals import Interval

REACHED = 0.9
"""Accuracy from which a number of pairs counts as recalled."""


@dataclass(frozen=True)
class Recall:
    """Recall of ``pairs`` keys with values among ``values`` by a state of ``state_bytes``."""

    pairs: int
    values: int
    accuracy: Interval
    state_bytes: int

    @property
    def bits(self) -> float:
        """Bits that come back; below 0 for less than guessing."""
        return self._bits(self.accuracy.value)

    @property
    def per_state_bit(self) -> Interval:
        """The same over the bits of the state, with the interval of the accuracy."""
        state = 8 * self.state_bytes
        found = [self._bits(end) / state for end in (self.accuracy.value, *self.accuracy.ci)]
        return replace(self.accuracy, value=found[0], low=found[1], high=found[2])

    @property
    def reached(self) -> bool:
        """Whether the accuracy is at least ``REACHED``."""
        return self.accuracy.value >= REACHED

    def _bits(self, accuracy: float) -> float:
        assert self.pairs >= 1
        assert self.values >= 2
        assert self.state_bytes >= 1
        return (accuracy - 1 / self.values) / (1 - 1 / self.values) * self.pairs * math.log2(self.values)


def most_pairs(recalls: Sequence[Recall]) -> int:
    """The largest number of pairs up to which all are recalled, 0 for none: one beyond a failure does not count."""
    most = 0
    for recall in sorted(recalls, key=lambda each: each.pairs):
        if not recall.reached:
            break
        most = recall.pairs
    return most


def smallest_state(recalls: Sequence[Recall]) -> Recall | None:
    """Of states that were asked for the same pairs the smallest that recalls them; None where none does.

    Raises ``ValueError`` for different numbers of pairs: a state that is asked for less needs less.
    """
    if len({(recall.pairs, recall.values) for recall in recalls}) > 1:
        raise ValueError("smallest_state: states were asked for different numbers of pairs; compare them one by one")
    return min((recall for recall in recalls if recall.reached), key=lambda each: each.state_bytes, default=None)
