"""Two aims at once, a low loss and balanced branches: who is beaten on both, and whether one costs the other."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import RESAMPLES, Interval
from harness.metrics.trend import UnderpoweredError

FloatArray = NDArray[np.float64]

ALPHA = 0.05
"""A correlation counts from here on."""

PERMUTATIONS = 5000


def on_frontier(loss: ArrayLike, balance: ArrayLike) -> NDArray[np.bool_]:
    """Which of ``[..., n]`` points nothing beats: no other has a loss as low and a balance as high, one of them better.

    Equal points do not beat each other.
    """
    x, y = np.asarray(loss, np.float64), np.asarray(balance, np.float64)
    no_worse = (x[..., None, :] <= x[..., :, None]) & (y[..., None, :] >= y[..., :, None])
    better = (x[..., None, :] < x[..., :, None]) | (y[..., None, :] > y[..., :, None])
    return np.asarray(~(no_worse & better).any(-1), np.bool_)


@dataclass(frozen=True)
class Standing:
    """Where one variant stands among the others, in what the seeds leave open.

    frontier      probability of lying on the frontier
    loss_rank     1 is the lowest loss, with the 90 % interval of the rank
    balance_rank  1 is the highest balance
    """

    frontier: float
    loss_rank: Interval
    balance_rank: Interval


def standings(loss: ArrayLike, balance: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> list[Standing]:
    """Standings of variants from ``loss`` and ``balance`` of ``[variants, seeds]``.

    A bootstrap over seeds. Three seeds of one variant give 10 different means, so the deviations from the variants'
    means are pooled, blown up by sqrt(n / (n - 1)) for the mean they lost, and drawn as pairs: the noise of a seed is
    taken to be the same for all variants, the correlation of the two aims within a run is kept.
    Raises ``UnderpoweredError`` below two seeds, and for values that are not finite.
    """
    points_vsa = np.stack([np.asarray(loss, np.float64), np.asarray(balance, np.float64)], axis=-1)
    variants, seeds, _ = points_vsa.shape
    if seeds < 2:
        raise UnderpoweredError(f"{seeds} seed: one run of a variant says nothing of how much the next would differ")
    if not np.isfinite(points_vsa).all():
        raise UnderpoweredError("a run has a loss or a balance that is not finite: it stands nowhere")
    means_va = points_vsa.mean(1)
    deviations_na = (points_vsa - means_va[:, None]).reshape(-1, 2) * math.sqrt(seeds / (seeds - 1))
    index = np.random.default_rng(seed).integers(0, len(deviations_na), size=(resamples, variants, seeds))
    drawn_rva = means_va + deviations_na[index].mean(2)
    frontier_v = on_frontier(drawn_rva[..., 0], drawn_rva[..., 1]).mean(0)
    ranks = [_ranks(means_va[:, 0], drawn_rva[..., 0]), _ranks(-means_va[:, 1], -drawn_rva[..., 1])]
    return [Standing(float(frontier_v[v]), *(_rank_interval(*rank, v, variants * seeds) for rank in ranks))
            for v in range(variants)]  # fmt: skip


def _ranks(means_v: FloatArray, drawn_rv: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ranks of the means and of every resample, 1 the lowest; ties share the better one."""
    below_v = (means_v[None, :] < means_v[:, None]).sum(-1) + 1.0
    below_rv = (drawn_rv[:, None, :] < drawn_rv[:, :, None]).sum(-1) + 1.0
    return below_v, below_rv


def _rank_interval(rank_v: FloatArray, drawn_rv: FloatArray, variant: int, n: int) -> Interval:
    low, high = np.quantile(drawn_rv[:, variant], [0.05, 0.95], method="inverted_cdf")
    value = float(rank_v[variant])
    # a rank may lie outside its own interval where equal means are always torn apart
    return Interval(value, min(float(low), value), max(float(high), value), n, len(rank_v))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation and the share of permutations that reach it (one-sided, towards positive)."""

    rho: float
    p_value: float
    n: int


def rank_correlation(x: ArrayLike, y: ArrayLike, *, seed: int, permutations: int = PERMUTATIONS) -> Correlation:
    """Spearman's rho of two ``[n]`` series and its permutation p: (1 + those as large) / (1 + all).

    Raises ``UnderpoweredError`` below five points, whose smallest p is above .04, and where one series is constant.
    Source  Spearman, Am. J. Psychol. 15 (1904) 72; p: Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    ranks = [_tied_ranks(np.asarray(values, np.float64)) for values in (x, y)]
    n = len(ranks[0])
    if n < 5:
        raise UnderpoweredError(f"{n} points have too few orders for a correlation; take at least five variants")
    centred = [r - r.mean() for r in ranks]
    lengths = [float(np.sqrt((c**2).sum())) for c in centred]
    if not all(lengths):
        raise UnderpoweredError("one axis is the same for all variants: nothing can go with it")
    first, second = (c / length for c, length in zip(centred, lengths, strict=True))
    rho = float(first @ second)
    shuffled_pn = np.random.default_rng(seed).permuted(np.tile(second, (permutations, 1)), axis=1)
    # rounding must not part equal orders
    reached = int((shuffled_pn @ first >= rho - 1e-9).sum())
    return Correlation(rho, (1 + reached) / (1 + permutations), n)


def _tied_ranks(values_n: FloatArray) -> FloatArray:
    """Ranks from 1 on, the lowest first; equal values share the mean of theirs."""
    _, place_n, count = np.unique(values_n, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place_n], np.float64)


def is_trade_off(correlation: Correlation, loss_slope: Interval, balance_slope: Interval) -> bool:
    """Whether balance costs loss: it goes with a higher loss across variants, and an intervention moves both together.

    The slopes are those of loss and balance under one knob of one variant: both must differ from 0, to the same side.
    A correlation alone would be a claim about which variants happen to exist.
    """
    seen = correlation.rho > 0 and correlation.p_value < ALPHA
    up = loss_slope.low > 0 and balance_slope.low > 0
    down = loss_slope.high < 0 and balance_slope.high < 0
    return seen and (up or down)
