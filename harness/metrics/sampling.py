"""Drawing the next token: temperature, nucleus, and one uniform number a token, so that a draw can be repeated."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def choose(log_p_nV: ArrayLike, draw_n: ArrayLike, *, temperature: float, top_p: float) -> NDArray[np.int64]:
    r"""One token of each row ``[n]``, from log-probabilities ``[n, V]`` and uniform numbers ``[n]`` in [0, 1).

        p_v ~ exp(log p_v / temperature)    over the smallest set of likeliest tokens that holds ``top_p`` of it

    The token is the first, likeliest first and of level ones the lower id, whose cumulated share exceeds the draw.
    Temperature 0 takes the likeliest. Raises ``ValueError`` for log-probabilities that hold NaN or that exclude all.
    Source  Holtzman et al., arXiv:1904.09751.
    """
    log_p, draw = np.asarray(log_p_nV, np.float64), np.asarray(draw_n, np.float64)
    assert log_p.ndim == 2
    assert draw.shape == log_p.shape[:1]
    assert temperature >= 0
    assert 0 < top_p <= 1
    best = log_p.max(1, keepdims=True)
    # NaN and +inf are no log-probability; a row of -inf allows nothing
    if not np.isfinite(best).all():
        raise ValueError("the log-probabilities of a next token hold NaN, or exclude every token: nothing to draw from")
    if temperature == 0:
        return np.asarray(log_p.argmax(1))
    weight = np.exp((log_p - best) / temperature)
    order = np.argsort(-weight, axis=1, kind="stable")
    total = np.take_along_axis(weight, order, 1).cumsum(1)
    # how many it takes: those before which less than top_p was reached
    kept = (total < top_p * total[:, -1:]).sum(1) + 1
    kept = np.minimum(kept, log_p.shape[1])
    mass = np.take_along_axis(total, kept[:, None] - 1, 1)
    place = np.minimum((total <= draw[:, None] * mass).sum(1), kept - 1)
    return np.take_along_axis(order, place[:, None], 1)[:, 0]
