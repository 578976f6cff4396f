"""Forced choices by likelihood: what was chosen, what counts as right, and what a scorer that knows nothing would get.

A probe is one choice among k candidates; an item is one probe or several with a joint rule. Log-probabilities in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import Interval

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ROUNDING = 1e-3
"""Above 0 by more than this, a number is no log-probability."""

SAME = 1e-9
"""Scores of candidates that are closer, in nats, are level: differences of logs round."""

LEAK = 0.05
"""How far above what can be guessed a control may lie with its whole interval before the items say nothing."""


def leaks(control: Interval, chance: float) -> bool:
    """Whether what should be a guess is above chance by more than ``LEAK``, beyond its interval."""
    return control.low > chance + LEAK


def log_ratio(with_nk: ArrayLike, without_nk: ArrayLike) -> FloatArray:
    """How much the fact raised each candidate: ``log p(v | context) - log p(v | context without the fact)`` ``[n, k]``.

    This is pointwise mutual information, which takes out what the candidates are worth without the fact. Raises
    ``ValueError`` for shapes that differ or for numbers above 0, such as raw logits: their differences mean nothing
    from one context to another.
    """
    given, bare = np.asarray(with_nk, np.float64), np.asarray(without_nk, np.float64)
    if given.shape != bare.shape or given.ndim != 2:
        raise ValueError(f"scores {given.shape} with and {bare.shape} without the fact: give both as [n, k]")
    for where, scores in (("with", given), ("without", bare)):
        # NaN is not above: it goes on, and makes the accuracy NaN
        if np.any(scores > ROUNDING):
            raise ValueError(
                f"a score of {np.nanmax(scores):.3g} {where} the fact is no log-probability; take log_softmax first"
            )
    # log 0 - log 0 is NaN: a model that excludes a candidate both times has no evidence about it
    with np.errstate(invalid="ignore"):
        return np.asarray(given - bare)


def gold_mask(gold: Sequence[Sequence[int]], candidates: int) -> BoolArray:
    """``[n, k]`` from the right indices of each probe; a probe may have several."""
    mask = np.zeros((len(gold), candidates), np.bool_)
    for row, right in enumerate(gold):
        if not right or min(right) < 0 or max(right) >= candidates:
            raise ValueError(
                f"probe {row} has gold {tuple(right)} among {candidates} candidates; give at least one, from 0"
            )
        mask[row, list(right)] = True
    return mask


def choices(scores_nk: ArrayLike) -> FloatArray:
    """What is chosen ``[n, k]``, rows of sum 1: the best candidate, or an equal share of each that is level with it.

    A tie is broken by chance, in expectation. Taking the first would pay whoever puts the answer first; calling ties
    wrong would put a scorer that knows nothing below chance, where a leak of the same size is not seen. Ties are
    common: bf16 logits have eight bits. A score of NaN makes its row NaN.
    """
    scores = np.asarray(scores_nk, np.float64)
    assert scores.ndim == 2
    best = scores.max(1, keepdims=True)
    level = np.where(np.isneginf(best), np.isneginf(scores), scores >= best - SAME)
    chosen = level / level.sum(1, keepdims=True).clip(1)
    return np.where(np.isnan(best), np.nan, chosen)


def credit(scores_nk: ArrayLike, gold_nk: ArrayLike) -> FloatArray:
    """Probability that each probe is answered right ``[n]``: 0 or 1, a share where the best candidates are level."""
    gold = np.asarray(gold_nk, np.bool_)
    chosen = choices(scores_nk)
    assert gold.shape == chosen.shape
    assert gold.any(1).all(), "every probe has an answer that is right"
    return np.asarray((chosen * gold).sum(1))


def joint_credit(credit_p: ArrayLike, item_p: ArrayLike, need_i: ArrayLike) -> FloatArray:
    """Probability that an item holds ``[items]``: at least ``need`` of its probes right.

    credit_p ``[probes]``, item_p ``[probes]`` the item of each, 0 .. items - 1; need_i ``[items]``, all m of m or
    fewer. Probes of one item are taken as independent, which matters only where a credit is neither 0 nor 1: ties, and
    scorers that guess. Then this is the exact tail of a Poisson binomial.
    """
    right, item, need = np.asarray(credit_p, np.float64), np.asarray(item_p), np.asarray(need_i)
    assert right.shape == item.shape
    sizes = np.bincount(item, minlength=len(need))
    if len(sizes) != len(need) or np.any(need < 1) or np.any(need > sizes):
        raise ValueError(f"items need 1 .. as many right probes as they have: {len(sizes)} items, {len(need)} needs")
    order = np.argsort(item, kind="stable")
    ends = np.cumsum(sizes)
    held = [at_least(int(r), right[order[end - m : end]]) for r, end, m in zip(need, ends, sizes, strict=True)]
    return np.array(held)


def at_least(need: int, probabilities_m: FloatArray) -> float:
    """Probability of ``need`` or more successes among independent trials of these probabilities."""
    counts = np.ones(1)
    for p in probabilities_m:
        counts = np.append(counts * (1 - p), 0) + np.append(0, counts * p)
    return float(counts[need:].sum())


def kappa(accuracy: Interval, chance: float) -> Interval:
    """Accuracy corrected for chance, (acc - chance) / (1 - chance): 0 for guessing, 1 for all right; bounds likewise.

    Source  Cohen, Educ. Psychol. Meas. 20 (1960) 37, with the guesser's agreement known.
    """
    assert 0 <= chance < 1
    value, low, high = ((x - chance) / (1 - chance) for x in (accuracy.value, *accuracy.ci))
    return Interval(value, low, high, accuracy.n, accuracy.n_clusters)


@dataclass(frozen=True)
class Reversion:
    """What is answered after a fact was corrected.

    old         share of all probes answered with the old value
    among_named the same share among the probes answered with the old or the new value; None when there is none
    """

    old: Interval
    among_named: Interval | None


def reversion(scores_nk: ArrayLike, old_n: ArrayLike, new_n: ArrayLike, clusters_n: ArrayLike) -> Reversion:
    """How often the old value is chosen. old_n, new_n ``[n]`` indices of the two values; clusters_n ``[n]``.

    Ties count as shares, also in the second number: a probe level between old and new is half a reversion.
    """
    chosen = choices(scores_nk)
    clusters = np.asarray(clusters_n)
    row = np.arange(len(chosen))
    old, new = chosen[row, np.asarray(old_n)], chosen[row, np.asarray(new_n)]
    assert not np.any(np.asarray(old_n) == np.asarray(new_n)), "the corrected value is another one"
    # NaN stays among them, so that a broken model has no good number
    named = ~(old + new == 0)
    share = old[named] / (old + new)[named]
    return Reversion(clustered_share(old, clusters), clustered_share(share, clusters[named]) if named.any() else None)


# --- scorers that need no model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferenceRates:
    """Expected accuracy of four scorers on a set of items, from what the items say.

    uniform      guesses among all candidates: the chance level
    always_last  takes the candidate that was mentioned last
    bag_of_words guesses among those that were mentioned: knows what was said and not of whom
    oracle       1
    """

    uniform: float
    always_last: float
    bag_of_words: float
    oracle: float = 1.0


def reference_rates(
    gold_nk: ArrayLike, mentioned_nk: ArrayLike, last_n: ArrayLike, item_n: ArrayLike, need_i: ArrayLike
) -> ReferenceRates:
    """Exact rates of the four scorers over items.

    gold_nk, mentioned_nk ``[probes, k]``: which candidates are right, and which the context mentions at all
    last_n ``[probes]`` the one mentioned last; -1 where none was, and then both heuristics guess
    item_n, need_i  as in ``joint_credit``
    """
    gold, mentioned, last = np.asarray(gold_nk, np.bool_), np.asarray(mentioned_nk, np.bool_), np.asarray(last_n)
    assert gold.shape == mentioned.shape
    if np.any((last >= 0) != mentioned.any(1)) or not mentioned[last >= 0, last[last >= 0]].all():
        raise ValueError("the candidate mentioned last must be among those mentioned, and -1 exactly where none was")
    guess = gold.mean(1)
    recent = np.where(last < 0, guess, gold[np.arange(len(gold)), last])
    words = np.where(last < 0, guess, (gold & mentioned).sum(1) / mentioned.sum(1).clip(1))
    uniform, always_last, bag = (float(joint_credit(each, item_n, need_i).mean()) for each in (guess, recent, words))
    return ReferenceRates(uniform, always_last, bag)
