"""Known answers of OVERFIT: the floor of a reader of given reach, and that the set needs a memory and can be learnt."""

import math

import numpy as np

from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.metrics.memorising import LENGTH, SEQUENCES, memory_floor, small_set


@known_answer("OVERFIT")
def a_shared_prefix_leaves_ln_2_where_it_branches() -> None:
    """Two sequences alike for five tokens: ln 2 at the branch and nothing elsewhere; without it nothing at all."""
    pair = np.array([[7, 1, 2, 3, 4, 5, 6, 8], [7, 1, 2, 3, 4, 9, 2, 1]])
    inputs, targets = pair[:, :-1], pair[:, 1:]
    for t, floor in enumerate(memory_floor(inputs, targets, reach=7)):
        expect(f"floor at {t}", float(floor), math.log(2) if t == 4 else 0.0, 1e-15)
    apart = inputs.copy()
    apart[1, 0] = 10
    expect("floor with different first tokens (negative control)", float(memory_floor(apart, targets, 7).sum()), 0.0)


@known_answer("OVERFIT")
def a_reader_of_nothing_has_the_entropy_of_the_words() -> None:
    """Reach 0 is the unigram entropy, whatever the order; reach 1 does not know what was before."""
    targets = np.array([[1, 1, 2, 2], [1, 2, 1, 2]])
    inputs = np.array([[5, 5, 5, 5], [5, 5, 5, 5]])
    expect("unigram", float(memory_floor(inputs, targets, 0).mean()), math.log(2), 1e-15)
    expect("one constant token", float(memory_floor(inputs, targets, 1).mean()), math.log(2), 1e-15)
    expect_between("its position, told by length", float(memory_floor(inputs, targets, 4).mean()), 0.0, math.log(2) / 2)


@known_answer("OVERFIT")
def the_set_can_be_learnt_and_only_with_a_memory() -> None:
    """The whole prefix tells every target; the last two tokens leave more than any limit that is near zero."""
    inputs, targets = small_set(16384, seed=0)
    expect("sequences with their own first token", float(len(set(inputs[:, 0].tolist()))), float(SEQUENCES))
    expect("floor of the whole prefix", float(memory_floor(inputs, targets, LENGTH).sum()), 0.0)
    expect_between("floor of the last two tokens", float(memory_floor(inputs, targets, 2).mean()), 0.1, 0.3)
    expect_between("floor of the last token", float(memory_floor(inputs, targets, 1).mean()), 2.4, math.log(16))
