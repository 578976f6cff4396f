"""What context is worth: losses of fixed targets by the length of their context, and what follows from the curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio

SHORT, LONG = 8, 128
"""Contexts of the long-range benefit, in tokens."""

STEP_NATS, NEAR_BEST_NATS = 0.01, 0.02
"""Useful context: a doubling must gain the first, and the loss must lie within the second of the best."""


GOOD, STRONG = 0.05, 0.15
"""Long-range benefits that are called so."""

NOTABLE_RISE = 1.1
"""Ratio of perplexities past the trained length that is remarked on."""


@dataclass(frozen=True)
class ContextLosses:
    """Losses of the same targets under contexts of several lengths.

    documents  document of each window ``[n]``
    targets    scored targets a window
    sums       context -> summed nats of each window ``[n]``; contexts ascend
    key_sums   the same over the key targets alone; key_counts ``[n]`` says how many there are
    refused    context -> why the model would not read that much
    """

    documents: list[int]
    targets: int
    sums: dict[int, list[float]]
    key_sums: dict[int, list[float]]
    key_counts: list[int]
    refused: dict[int, str]

    @property
    def contexts(self) -> list[int]:
        """Contexts that were read, in tokens, ascending."""
        return sorted(self.sums)

    def loss(self, context: int) -> ClusterRatio:
        """Nats a token by document."""
        return ClusterRatio.of(self.sums[context], [self.targets] * len(self.documents), self.documents)

    def key_loss(self, context: int) -> ClusterRatio:
        """Nats a key token by document."""
        return ClusterRatio.of(self.key_sums[context], self.key_counts, self.documents)

    @property
    def num_documents(self) -> int:
        """Documents behind the curve."""
        return len(set(self.documents))


def key_targets(tokens: ArrayLike, position: int, near: int, far: int) -> bool:
    """Whether the token after ``position`` was said before: at most ``far`` tokens back, and not in the last ``near``.

    The text alone decides, not a loss: choosing the targets by what they gain would build the gain in. No token is one
    when ``far`` does not exceed ``near``.
    """
    text = np.asarray(tokens)
    begin, middle, end = max(position + 1 - far, 0), max(position + 1 - near, 0), position + 1
    word = text[position + 1]
    return bool((text[begin:middle] == word).any() and not (text[middle:end] == word).any())


def context_step(losses: ContextLosses, shorter: int, longer: int, *, seed: int) -> Interval:
    """L(longer) - L(shorter) in nats a token, paired target by target; negative where context helps."""
    return bootstrap_ratio(losses.loss(longer).minus(losses.loss(shorter)), seed=seed)


def key_step(losses: ContextLosses, shorter: int, longer: int, *, seed: int) -> Interval:
    """``context_step`` over the key targets alone; NaN when there are none."""
    return bootstrap_ratio(losses.key_loss(longer).minus(losses.key_loss(shorter)), seed=seed)


def long_range_benefit(losses: ContextLosses, *, seed: int, short: int = SHORT, long: int = LONG) -> Interval:
    """LRD = (L(short) - L(long)) / L(short), a share of the loss; 0 for a model that uses no more than ``short``."""
    gain = losses.loss(short).minus(losses.loss(long))
    return bootstrap_ratio(ClusterRatio(gain.numerators, losses.loss(short).numerators, gain.n), seed=seed)


def degradation(losses: ContextLosses, trained: int, beyond: int, *, seed: int) -> Interval:
    """exp(L(beyond) - L(trained)): how much larger the perplexity is past the length of the training."""
    step = context_step(losses, trained, beyond, seed=seed)

    def perplexity(nats: float) -> float:
        # past the range of a float it is infinite; any limit is long exceeded
        return math.exp(nats) if nats < 700 else math.inf

    return Interval(perplexity(step.value), perplexity(step.low), perplexity(step.high), step.n, step.n_clusters)


def verdict(benefit: float) -> str:
    """What a long-range benefit is called; empty below 5 %."""
    return "strong" if benefit >= STRONG else "good" if benefit >= GOOD else ""


def beyond_note(ratio: float) -> str:
    """A remark on perplexity past the trained length; empty where it has not risen by more than a tenth."""
    return f"perplexity is up by more than {NOTABLE_RISE - 1:.0%}" if ratio > NOTABLE_RISE else ""


def useful_context(losses: ContextLosses, *, seed: int) -> int:
    """The largest context whose last doubling gained at least ``STEP_NATS`` (upper bound) and that is near the best.

    0 when no doubling gained that much: the useful context is then shorter than all that were measured.
    """
    contexts = losses.contexts
    best = min(losses.loss(c).value for c in contexts)
    useful = [
        longer
        for shorter, longer in pairwise(contexts)
        if context_step(losses, shorter, longer, seed=seed).high <= -STEP_NATS
        and losses.loss(longer).value - best <= NEAR_BEST_NATS
    ]
    return max(useful, default=0)


def doublings(first: int, last: int) -> list[int]:
    """``first``, twice that, ... up to ``last``."""
    assert 0 < first <= last
    return [first << k for k in range(int(math.log2(last / first) + 1e-9) + 1)]


def curve(losses: ContextLosses, *, seed: int) -> Mapping[int, Interval]:
    """L(c) with its interval, by context."""
    return {c: bootstrap_ratio(losses.loss(c), seed=seed) for c in losses.contexts}


def longest_within(contexts: Sequence[int], limit: int) -> list[int]:
    """The contexts that do not exceed ``limit``."""
    return [c for c in contexts if c <= limit]
