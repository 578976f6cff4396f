"""Known answers of SB3: a table of exactly its own bits, tables that hold a part of it, and one that holds nothing."""

import numpy as np

from harness.known_answers import known_answer
from harness.metrics.expect import expect
from harness.metrics.intervals import Interval
from harness.metrics.recall_efficiency import Recall, most_pairs, smallest_state

PAIRS, VALUES = 32, 256


def certain(accuracy: float) -> Interval:
    """An accuracy without doubt."""
    return Interval(accuracy, accuracy, accuracy, 1000, 1000)


def table(held: int, pairs: int = PAIRS) -> Recall:
    """A table with a byte for each pair, of which it has filled in ``held``, and that guesses the others."""
    right = (held + (pairs - held) / VALUES) / pairs
    return Recall(pairs, VALUES, certain(right), pairs)


@known_answer("SB3", "MQAR")
def an_exact_table_holds_its_own_bits() -> None:
    """32 values of 256 in 32 bytes are 256 bits of 256; half a table is half of it, a guesser nothing."""
    expect("bits of the exact table", table(PAIRS).bits, 256.0, 1e-9)
    expect("per bit of its own", table(PAIRS).per_state_bit.value, 1.0, 1e-12)
    expect("of half a table", table(PAIRS // 2).per_state_bit.value, 0.5, 1e-12)
    expect("of a guesser (negative control)", table(0).per_state_bit.value, 0.0, 1e-12)


@known_answer("SB3", "MQAR")
def a_table_that_is_played_holds_its_own_bits() -> None:
    """The same with answers that are drawn: 2,000 texts, a share of the table kept."""
    generator = np.random.default_rng(51)
    told = generator.integers(VALUES, size=(2000, PAIRS))
    for share in (0.25, 1.0):
        kept = generator.random(told.shape) < share
        answers = np.where(kept, told, generator.integers(VALUES, size=told.shape))
        accuracy = float((answers == told).mean())
        found = Recall(PAIRS, VALUES, certain(accuracy), PAIRS).per_state_bit.value
        expect(f"a table that keeps {share:g}", found, share, 0.01)


@known_answer("SB3", "MQAR")
def what_is_reached_is_reached_without_a_gap() -> None:
    """Pairs beyond a failure do not count; of two states that recall the smaller is taken, of none nothing."""
    half = [Recall(pairs, VALUES, certain(right), 64) for pairs, right in ((4, 1.0), (8, 0.95), (16, 0.5), (32, 0.99))]
    expect("pairs recalled", most_pairs(half), 8)
    expect("pairs recalled when none is (negative control)", most_pairs(half[2:3]), 0)
    sizes = [Recall(8, VALUES, certain(right), size) for size, right in ((32, 0.5), (64, 0.91), (128, 0.99))]
    smallest = smallest_state(sizes)
    assert smallest is not None, "a state of 64 bytes recalls"
    expect("bytes of the smallest state", smallest.state_bytes, 64)
    assert smallest_state(sizes[:1]) is None, "a state that recalls half has reached nothing"
