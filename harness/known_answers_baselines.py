"""Known answers of BASELINES: where losses lie that are those of the naive models themselves."""

import math

import numpy as np

from harness.data import Split, Windows
from harness.dynamics import naive_ratio
from harness.known_answers import known_answer
from harness.metrics.baselines import naive_losses
from harness.metrics.expect import expect, expect_between
from harness.metrics.intervals import ClusterRatio
from harness.naive_margins import naive_margins

VOCAB, TOKENS, DOCUMENTS = 8, 4000, 4


def cycle() -> Split:
    """Eight tokens that always come in the same order: nothing is left to chance once the last one is known."""
    tokens = (np.arange(TOKENS) % VOCAB).astype(np.uint16)
    offsets = np.linspace(0, TOKENS, DOCUMENTS + 1).astype(np.int64)
    return Split(tokens, offsets, tuple(f"document {i}" for i in range(DOCUMENTS)), 0)


@known_answer("BASELINES")
def naive_models_lie_where_they_must() -> None:
    """The unigram model itself has margin 0, a fair coin among eight margin 1; on a cycle the bigram loses nothing."""
    split = cycle()
    # three of the eight tokens made one, so that unigram and uniform differ
    skewed = Split(np.where(split.tokens < 3, 0, split.tokens).astype(np.uint16), split.offsets, split.names, 0)
    naive = naive_losses(skewed, Windows.of(skewed, 16, 100), VOCAB)
    ratios = {name: naive_ratio(loss) for name, loss in naive.items()}
    expect("margin of the unigram model", naive_margins(ratios["unigram"], naive, seed=0).unigram.value, 0.0, 1e-12)
    expect("margin of the uniform model", naive_margins(ratios["uniform"], naive, seed=0).unigram.value, 1.0, 1e-12)
    expect("uniform", naive["uniform"].nats, math.log(VOCAB), 1e-12)
    middle = (ratios["unigram"].numerators + ratios["uniform"].numerators) / 2
    half = ClusterRatio(middle, ratios["uniform"].denominators, 100)
    expect("half way", naive_margins(half, naive, seed=0).unigram.value, 0.5, 1e-12)


@known_answer("BASELINES")
def the_difference_to_the_bigram_is_paired() -> None:
    """The bigram model's own loss is 0 away from it; the unigram model's is far above (negative control)."""
    split = cycle()
    naive = naive_losses(split, Windows.of(split, 16, 100), VOCAB)
    own = naive_margins(naive_ratio(naive["bigram"]), naive, seed=0).bigram
    expect("bigram less itself", own.value, 0.0)
    expect("width of its interval", own.high - own.low, 0.0)
    unigram = naive_margins(naive_ratio(naive["unigram"]), naive, seed=0).bigram
    expect_between("unigram less bigram on a cycle", unigram.value, 1.9, math.log(VOCAB))
