"""How a state moves: how far edits move it, how long a difference lasts, whether small differences grow."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, RESAMPLES, Interval

Floats = NDArray[np.float64]

ROUNDING = 1e-7
"""Share of a difference that is lost in the rounding of fp32 states."""


def monotonicity(doses: ArrayLike, responses: ArrayLike) -> float:
    """Spearman's rank correlation of doses ``[n]`` and responses ``[n]``: 1 when every larger dose does more.

    NaN when the response does not vary: a state that does not respond has no order.
    """
    from scipy.stats import rankdata

    x, y = rankdata(np.asarray(doses)), rankdata(np.asarray(responses, np.float64))
    if not np.all(np.isfinite(np.asarray(responses, np.float64))) or np.ptp(y) == 0 or np.ptp(x) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def half_life(lags: Sequence[int], retained: ArrayLike) -> float:
    """Tokens until a share that starts at 1 has fallen to 1/2; ``retained [n]`` is the share after ``lags [n]`` tokens.

    Between lags the share is taken to fall exponentially. A share that is still above 1/2 at the last lag h gives
    -h ln 2 / ln r(h), the half-life of a steady decay, and infinity when it has not fallen at all. A share below
    ``ROUNDING`` counts as that: fp32 states cannot show less.
    """
    shares = np.asarray(retained, np.float64)
    assert len(lags) == len(shares) > 0
    if np.isnan(shares).any():
        return math.nan
    before, log_before = 0, 0.0
    for lag, share in zip(lags, shares, strict=True):
        if share <= 0.5:
            log_now = math.log(max(share, ROUNDING))
            return float(before + (lag - before) * (math.log(0.5) - log_before) / (log_now - log_before))
        before, log_before = lag, math.log(share)
    return math.inf if log_before >= 0 else -before * math.log(2) / log_before


def half_life_interval(lags: Sequence[int], sums_DM: ArrayLike, initial_D: ArrayLike, *, seed: int) -> Interval:
    """Half-life of a difference whose squared size is ``sums_DM [documents, lags]``, from ``initial_D [documents]``.

    The interval resamples documents.
    """
    over, under = np.asarray(sums_DM, np.float64), np.asarray(initial_D, np.float64)
    documents = len(under)
    draws = np.random.default_rng(seed).integers(0, documents, size=(RESAMPLES, documents))
    shares = np.sqrt(over[draws].sum(1) / under[draws].sum(1)[:, None])
    found = np.array([half_life(lags, share) for share in shares])
    # half-lives may be infinite: an order statistic, no interpolation between two of them
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    value = half_life(lags, np.sqrt(over.sum(0) / under.sum()))
    if documents < 2:
        low, high = -math.inf, math.inf
    return Interval(value, float(low), float(high), documents, documents)


def growth_exponent(log_growths_DB: ArrayLike, tokens: int) -> Floats:
    """Finite-time Lyapunov exponent a document, ``[documents, blocks] -> [documents]``, in 1 / token.

        lambda = (1 / (blocks tokens)) sum_b ln(|delta_b end| / |delta_b start|)

    The perturbation is scaled back to its first size after every block of ``tokens`` (Benettin et al., Meccanica 15,
    1980), so that it stays small. Negative: differences die out.
    """
    logs = np.asarray(log_growths_DB, np.float64)
    exponent: Floats = logs.mean(1) / tokens
    return exponent
