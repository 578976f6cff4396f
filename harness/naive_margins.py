"""A validation loss beside the naive models', on the same windows."""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.dynamics import margin, naive_ratio
from harness.metrics.baselines import NaiveLoss
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio


@dataclass(frozen=True)
class NaiveMargins:
    """Where a loss lies; intervals over documents, the difference taken in each document.

    loss     nats a token
    unigram  0 where the unigram model is, 1 where the uniform one is; below 0 better than both
    bigram   loss minus the bigram model's, nats a token
    """

    loss: Interval
    unigram: Interval
    bigram: Interval


def naive_margins(loss: ClusterRatio, naive: Mapping[str, NaiveLoss], *, seed: int) -> NaiveMargins:
    """Margins of a loss by document over ``uniform``, ``unigram`` and ``bigram``, all on the same windows.

    Raises ValueError when the windows differ.
    """
    ratios = {name: naive_ratio(value) for name, value in naive.items()}
    return NaiveMargins(
        bootstrap_ratio(loss, seed=seed),
        bootstrap_ratio(margin(loss, ratios["unigram"], ratios["uniform"]), seed=seed),
        bootstrap_ratio(loss.minus(ratios["bigram"]), seed=seed),
    )
