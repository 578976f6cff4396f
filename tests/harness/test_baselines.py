import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.corpora.markov import MarkovSource
from harness.data import DataError, Split, Windows
from harness.metrics.baselines import KneserNeyBigram, Uniform, Unigram, evaluate, naive_losses


def split_of(documents: list[list[int]]) -> Split:
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])]).astype(np.int64)
    tokens = np.concatenate([np.array(d) for d in documents]).astype(np.uint16)
    return Split(tokens, offsets, tuple(f"d{i}" for i in range(len(documents))), num_bytes=0)


def distribution(model, previous: int, vocab_size: int) -> np.ndarray:
    targets = np.arange(vocab_size, dtype=np.uint16)
    return np.exp(model.log_probs(np.full_like(targets, previous), targets))


def test_uniform_costs_the_logarithm_of_the_vocabulary():
    windows = Windows.of(split_of([[1, 2, 3, 4, 5]]), 4, 10)
    assert evaluate(Uniform(16384), windows).nats == pytest.approx(math.log(16384), abs=1e-12)


def test_unigram_adds_half_a_count():
    model = Unigram(split_of([[0, 0, 1]]), vocab_size=4)
    np.testing.assert_allclose(distribution(model, 3, 4), [2.5 / 5, 1.5 / 5, 0.5 / 5, 0.5 / 5], rtol=1e-14)


def test_kneser_ney_by_hand():
    # pairs 01 twice, 10 twice, 02 once: n1 = 1, n2 = 2, so D = 1.5 / 6; every token has one predecessor: P_c = 1/3
    model = KneserNeyBigram(split_of([[0, 1, 0, 1, 0, 2]]), vocab_size=3)
    backoff = 0.25 * 2 / 3 / 3
    np.testing.assert_allclose(distribution(model, 0, 3), [backoff, 1.75 / 3 + backoff, 0.75 / 3 + backoff], rtol=1e-14)
    # 2 was never a context
    np.testing.assert_allclose(distribution(model, 2, 3), [1 / 3] * 3, rtol=1e-14)


def slow_kneser_ney(documents: list[list[int]], vocab_size: int) -> np.ndarray:
    """The formula of the docstring in loops: ``[V, V]``, rows are contexts."""
    pairs = Counter(pair for d in documents for pair in itertools.pairwise(d))

    def discount(counts):
        ones, twos = list(counts).count(1), list(counts).count(2)
        return (ones + 0.5) / (ones + 2 * twos + 1)

    predecessors = Counter(w for _, w in pairs)
    d, e, total = discount(pairs.values()), discount(predecessors.values()), len(pairs)
    table = np.zeros((vocab_size, vocab_size))
    for v in range(vocab_size):
        context = sum(c for (a, _), c in pairs.items() if a == v)
        kinds = sum(a == v for a, _ in pairs)
        for w in range(vocab_size):
            lower = max(predecessors[w] - e, 0) / total + e * len(predecessors) / total / vocab_size
            if context:
                table[v, w] = max(pairs[v, w] - d, 0) / context + d * kinds / context * lower
            else:
                table[v, w] = lower
    return table


VOCAB = 6
documents_of_tokens = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=30), min_size=1, max_size=5)


@settings(deadline=None)
@given(documents_of_tokens)
def test_every_distribution_is_positive_and_sums_to_one(documents):
    train = split_of(documents)
    for model in (Uniform(VOCAB), Unigram(train, VOCAB), KneserNeyBigram(train, VOCAB)):
        for previous in range(VOCAB):
            p_V = distribution(model, previous, VOCAB)
            assert p_V.min() > 0
            assert p_V.sum() == pytest.approx(1, abs=1e-12)


@settings(deadline=None)
@given(documents_of_tokens)
def test_kneser_ney_equals_its_formula_written_as_loops(documents):
    model = KneserNeyBigram(split_of(documents), VOCAB)
    fast = np.stack([distribution(model, previous, VOCAB) for previous in range(VOCAB)])
    np.testing.assert_allclose(fast, slow_kneser_ney(documents, VOCAB), rtol=1e-12)


def test_a_pair_across_two_documents_is_not_counted():
    apart = KneserNeyBigram(split_of([[0, 1], [2, 3]]), vocab_size=4)
    together = KneserNeyBigram(split_of([[0, 1, 2, 3]]), vocab_size=4)
    assert distribution(apart, 1, 4).argmax() != 2
    assert distribution(together, 1, 4).argmax() == 2


@pytest.fixture(scope="module")
def chain():
    """A dense chain of 64 symbols and 3.1 million training tokens."""
    source = MarkovSource(num_symbols=64, train_documents=3072, val_documents=512)
    return source, source.dataset(vocab_size=64)


def test_on_a_markov_chain_the_baselines_find_its_entropies(chain):
    source, data = chain
    windows = data.validation_windows(128, 10**6)
    losses = naive_losses(data.train, windows, data.vocab_size)

    assert losses["uniform"].nats == pytest.approx(math.log(64), abs=1e-12)
    assert losses["unigram"].nats == pytest.approx(source.unigram_entropy_nats, abs=0.01)
    assert losses["bigram"].nats == pytest.approx(source.entropy_rate_nats, abs=0.01)
    # the entropies lie so far apart that neither line above could pass in the other's place
    assert source.unigram_entropy_nats - source.entropy_rate_nats > 0.5


def test_the_bigram_pays_for_estimating_its_parameters_and_no_more(chain):
    source, data = chain
    windows = data.validation_windows(128, 10**6)
    true_loss = np.mean(
        [-np.log(source.transitions[x, y]).mean() for x, y, _ in windows.batches(1)],
    )
    excess = evaluate(KneserNeyBigram(data.train, 64), windows).nats - true_loss
    # maximum likelihood pays 64 * 63 / 2N = .0006; a model that peeks at validation would be below 0
    assert 0 < excess < 0.003


def test_negative_control_a_bigram_of_shuffled_tokens_is_no_better_than_a_unigram(chain):
    _, data = chain
    shuffled = np.random.default_rng(0).permutation(data.train.tokens)
    train = Split(shuffled, data.train.offsets, data.train.names, num_bytes=0)
    losses = naive_losses(train, data.validation_windows(128, 500), data.vocab_size)
    assert losses["bigram"].nats >= losses["unigram"].nats - 0.01


def test_document_means_are_those_of_the_targets_of_each_document():
    val = split_of([[0, 1, 2, 0, 1, 2, 0, 1, 2], [3], [2, 2, 2, 2, 2]])
    model = Unigram(split_of([[0, 0, 0, 1, 2]]), vocab_size=4)
    windows = Windows.of(val, 4, 100)
    loss = evaluate(model, windows)

    cost = -model.log_p_V
    assert loss.documents.tolist() == [0, 2]
    assert loss.document_targets.tolist() == [8, 4]
    # targets of document 0 are 1 2 0 1 2 0 1 2, of document 2 four times 2
    expected = [(2 * cost[0] + 3 * cost[1] + 3 * cost[2]) / 8, cost[2]]
    np.testing.assert_allclose(loss.document_nats, expected, rtol=1e-14)
    assert loss.nats == pytest.approx(np.average(loss.document_nats, weights=loss.document_targets), rel=1e-14)


def test_bits_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"token id 7 does not fit a vocabulary of 4"):
        Unigram(split_of([[0, 7]]), vocab_size=4)
    with pytest.raises(DataError, match=r"at least two tokens"):
        KneserNeyBigram(split_of([[0], [1]]), vocab_size=4)
    with pytest.raises(DataError, match=r"no validation windows"):
        evaluate(Uniform(4), Windows.of(split_of([[0, 1, 2]]), 2, 0))
