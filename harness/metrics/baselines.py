r"""Naive language models: the cross-entropies that a trained model has to beat before any of its numbers mean much.

    uniform   ln V
    unigram   P(w) = (c(w) + 1/2) / (N + V/2)
    bigram    interpolated Kneser-Ney with one discount a level

All are fitted on the training split and measured on the very targets of the validation windows, so their losses can be
set against a model's validation loss without further ado. Unit: nats a token.

Source  Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling", Computer
        Speech and Language 8 (1994); Chen and Goodman, "An empirical study of smoothing techniques for language
        modeling", TR-10-98 (1998), section 2.7.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.data import DataError, Split, Tokens, Windows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Windows scored at once: bounds the memory, not the result
BATCH_WINDOWS = 256


@dataclass(frozen=True)
class NaiveLoss:
    """Cross-entropy of a naive model on the targets of some windows, in nats.

    nats            mean over all targets
    documents       ``[d]`` indices of the documents that the windows lie in, ascending
    document_nats   ``[d]`` mean over the targets of each document, for intervals that resample documents
    document_targets ``[d]`` targets in each document: the weights that turn document means into ``nats``
    """

    nats: float
    documents: Ints
    document_nats: Floats
    document_targets: Ints


class NaiveModel(Protocol):
    """Predicts a token from the one before it, or from less."""

    def log_probs(self, previous: Tokens, targets: Tokens) -> Floats:
        """``ln P(target | previous)``, same shape as the arguments."""
        ...


class Uniform:
    """Every token is equally likely."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def log_probs(self, previous: Tokens, targets: Tokens) -> Floats:
        """``-ln V`` everywhere."""
        return np.full(targets.shape, -math.log(self.vocab_size))


class Unigram:
    """Token frequencies of the training split, half a count added to each: unseen tokens keep a finite loss."""

    def __init__(self, train: Split, vocab_size: int) -> None:
        counts = _counts(train.tokens, vocab_size) + 0.5
        self.log_p_V = np.log(counts) - math.log(counts.sum())

    def log_probs(self, previous: Tokens, targets: Tokens) -> Floats:
        """``ln P(target)``; what came before does not matter."""
        log_p: Floats = self.log_p_V[targets]
        return log_p


class KneserNeyBigram:
    r"""Interpolated Kneser-Ney.

        P(w | v) = max(c(v w) - D, 0) / c(v) + D t(v) / c(v) P_c(w)        t(v)  distinct successors of v
        P_c(w)   = max(q(w) - E, 0) / Q      + E n / Q / V                 q(w)  distinct predecessors of w
                                                                           Q, n  sum of q; tokens with q > 0

    A context never seen gets ``P_c``. The discounts are Ney's estimates ``n1 / (n1 + 2 n2)`` from the numbers of
    counts that equal 1 and 2, with half a count added to keep them inside (0, 1) when there are none. Pairs that
    straddle two documents are not counted: no window holds one.
    """

    def __init__(self, train: Split, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        previous, following = _pairs_within_documents(train)
        if not len(following):
            raise DataError("a bigram needs training documents of at least two tokens; this split has none")
        # sorted, so that a pair is found by bisection
        self._pairs, self._pair_counts = np.unique(previous * vocab_size + following, return_counts=True)
        self._context_V = _counts(previous, vocab_size)
        self._discount = _discount(self._pair_counts)

        successors_V = _counts(self._pairs // vocab_size, vocab_size)
        predecessors_V = _counts(self._pairs % vocab_size, vocab_size)
        num_pairs = len(self._pairs)
        discount = _discount(predecessors_V)
        reserved = discount * np.count_nonzero(predecessors_V) / num_pairs
        self._continuation_V = np.maximum(predecessors_V - discount, 0.0) / num_pairs + reserved / vocab_size
        # share of a context that goes to the continuation: all of it where nothing was seen
        self._backoff_V = np.ones(vocab_size)
        seen_V = self._context_V > 0
        self._backoff_V[seen_V] = self._discount * successors_V[seen_V] / self._context_V[seen_V]

    def log_probs(self, previous: Tokens, targets: Tokens) -> Floats:
        """``ln P(target | previous)``."""
        context = previous.astype(np.int64)
        pair = context * self.vocab_size + targets
        at = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        counts = np.where(self._pairs[at] == pair, self._pair_counts[at], 0)
        direct = np.maximum(counts - self._discount, 0.0) / np.maximum(self._context_V[context], 1)
        log_p: Floats = np.log(direct + self._backoff_V[context] * self._continuation_V[targets])
        return log_p


def evaluate(model: NaiveModel, windows: Windows) -> NaiveLoss:
    """Mean loss in nats over every target of the windows, and by document. Raises ``DataError`` without windows."""
    if not len(windows):
        raise DataError("no validation windows to measure on; ask for at least one")
    num_documents = int(windows.documents.max()) + 1
    totals, targets_seen = np.zeros(num_documents), np.zeros(num_documents, np.int64)
    for previous, targets, documents in windows.batches(BATCH_WINDOWS):
        losses = -model.log_probs(previous, targets).sum(axis=1)
        totals += np.bincount(documents, weights=losses, minlength=num_documents)
        targets_seen += np.bincount(documents, minlength=num_documents) * windows.length
    present = np.flatnonzero(targets_seen)
    return NaiveLoss(
        nats=float(totals.sum() / targets_seen.sum()),
        documents=present,
        document_nats=totals[present] / targets_seen[present],
        document_targets=targets_seen[present],
    )


def naive_losses(train: Split, windows: Windows, vocab_size: int) -> dict[str, NaiveLoss]:
    """The three baselines by name, fitted on ``train`` and measured on the targets of ``windows``."""
    models: dict[str, NaiveModel] = {
        "uniform": Uniform(vocab_size),
        "unigram": Unigram(train, vocab_size),
        "bigram": KneserNeyBigram(train, vocab_size),
    }
    return {name: evaluate(model, windows) for name, model in models.items()}


def _counts(ids: NDArray[np.integer], vocab_size: int) -> Ints:
    counts = np.bincount(ids, minlength=vocab_size)
    if len(counts) > vocab_size:
        raise DataError(f"token id {len(counts) - 1} does not fit a vocabulary of {vocab_size}")
    return counts


def _pairs_within_documents(split: Split) -> tuple[Ints, Ints]:
    """Each token that has a successor in its own document, and that successor."""
    inside = np.ones(len(split), bool)
    inside[split.offsets[1:] - 1] = False
    inside = inside[:-1]
    tokens = np.asarray(split.tokens, dtype=np.int64)
    return tokens[:-1][inside], tokens[1:][inside]


def _discount(counts: Ints) -> float:
    ones, twos = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return (ones + 0.5) / (ones + 2 * twos + 1.0)
