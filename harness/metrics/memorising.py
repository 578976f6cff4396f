"""A small set of random sequences to learn by heart, and the loss that no reader of a given reach can go below."""

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import Tokens
from harness.errors import HarnessError

SEQUENCES, LENGTH = 16, 64

ALPHABET = 64
"""Different tokens in the set. Each comes 16 times: who reads one token stays above 2.6 nats, who reads two above .15.

Drawn from a whole vocabulary of 16384, nearly every token would come once, and a table of bigrams would pass.
"""


def small_set(vocab_size: int, seed: int) -> tuple[Tokens, Tokens]:
    """Inputs and targets ``[16, 64]``: random tokens, the first of each sequence unlike every other first one.

    A reader of the whole prefix can therefore know every target. Raises HarnessError for a vocabulary below 16.
    """
    if vocab_size < SEQUENCES:
        raise HarnessError(
            f"data.vocab_size {vocab_size}: {SEQUENCES} sequences with different first tokens need at least "
            f"{SEQUENCES} tokens; give a larger vocabulary"
        )
    generator = np.random.Generator(np.random.Philox(key=seed))
    alphabet = generator.permutation(vocab_size)[:ALPHABET]
    rows = generator.choice(alphabet, size=(SEQUENCES, LENGTH + 1))
    rows[:, 0] = generator.permutation(alphabet)[:SEQUENCES]
    tokens = rows.astype(np.uint16)
    return tokens[:, :-1], tokens[:, 1:]


def memory_floor(inputs_BT: NDArray[Any], targets_BT: NDArray[Any], reach: int) -> NDArray[np.float64]:
    """Least cross entropy ``[T]``, nats a target, of a model that sees the last ``reach`` inputs and nothing else.

    That is the entropy of the targets given what is seen, over this very set: a table of counts attains it. Inputs
    before the first are seen as absent, so a model of any reach knows that it stands at the beginning. With
    ``reach`` of at least T the whole prefix is seen; two sequences that share one and part have ln 2 where they do.
    """
    batch, length = targets_BT.shape
    seen = [[tuple(row[max(0, t + 1 - reach) : t + 1]) for t in range(length)] for row in inputs_BT.tolist()]
    # a context cut off by the beginning is shorter, and so no other's
    contexts = Counter(context for row in seen for context in row)
    pairs = Counter(
        (context, target)
        for row, targets in zip(seen, targets_BT.tolist(), strict=True)
        for context, target in zip(row, targets, strict=True)
    )
    floor_T = np.zeros(length)
    for row, targets in zip(seen, targets_BT.tolist(), strict=True):
        for t, (context, target) in enumerate(zip(row, targets, strict=True)):
            floor_T[t] += math.log(contexts[context] / pairs[context, target]) / batch
    return floor_T
