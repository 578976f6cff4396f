"""Losses that can be compared across tokenisers: bits a byte of text."""

import math

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.intervals import ClusterRatio


def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike, documents: ArrayLike) -> ClusterRatio:
    r"""Bits that a text costs, over its bytes:  sum of nats / (ln 2 * sum of bytes), kept by document.

    ``nats [n]`` and ``num_bytes [n]`` belong to stretches of text of the ``documents [n]``. The end of a document
    costs nats and has no bytes. 8 for a model that knows nothing of bytes; the loss a token says nothing between
    tokenisers, since a token is as long as the tokeniser makes it.
    """
    return ClusterRatio.of(nats, np.asarray(num_bytes, dtype=np.float64) * math.log(2), documents)
