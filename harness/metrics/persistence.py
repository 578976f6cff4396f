"""How many turns a fact persists: a monotone curve of accuracy against lag, and where it crosses one half."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import LEVEL, RESAMPLES, Interval, expanded_tail

FloatArray = NDArray[np.float64]

Censored = Literal["", "above", "below"]

CERTAIN = 12.0
"""Logits beyond this are as good as 0 and 1: where the likelihood has no maximum, it goes flat there."""

STEEPEST = 300.0
"""Logits at either end of the lags: enough for a step from one to the other between two lags that are close."""

UNDECIDED = 0.05
"""A corrected accuracy this far from both 0 and 1 helps to place the crossing."""

ZOOMS = 9
_CLOSER = 2.5
_COARSE, _FINE = 49, 7


@dataclass(frozen=True)
class Crossing:
    """A lag in turns, with its interval.

    censored  ``above``: the curve is still up at the largest lag, which is the value; the interval has no end.
              ``below``: it is down at the smallest lag already, which is the value; the interval begins at 0
    """

    turns: Interval
    censored: Censored


@dataclass(frozen=True)
class Persistence:
    """Accuracy over lags and what it says.

    score      lag at which the fitted accuracy, corrected for chance, crosses .5
    half_life  ln .5 / ln q of acc = c + (1 - c) q^d. It assumes that nothing is lost at lag 0
    area       mean of the corrected accuracy over the logarithm of the lag, as measured: no curve is fitted
    misfit     largest distance of an accuracy from the fitted curve
    """

    lags: tuple[int, ...]
    accuracies: tuple[Interval, ...]
    score: Crossing
    half_life: Crossing
    area: Interval
    misfit: float

    @property
    def rises(self) -> bool:
        """Whether a longer lag is better than a shorter one beyond both intervals: no lag is then a limit of memory."""
        return any(
            later.low > earlier.high
            for place, earlier in enumerate(self.accuracies)
            for later in self.accuracies[place + 1 :]
        )


def persistence(
    credit_n: ArrayLike,
    lags_n: ArrayLike,
    clusters_n: ArrayLike,
    *,
    chance: float,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Persistence:
    r"""Fit ``credit [n]``, probability that an item was answered right, at ``lags [n]`` turns, 1 or more.

        acc(d) = c + (1 - c) sigmoid(a - b ln d),   b >= 0,   by binomial likelihood;   score = exp(a / b)

    Likelihoods are searched on a grid that zooms in, so that a fit never fails to converge; resamples use the same
    search. Templates ``clusters [n]`` are resampled: jointly over lags where every lag has the same ones, lag by lag
    where none is at two lags. Between lags that are all right and lags at chance the likelihood is flat: then the
    score is the geometric mean of the two lags and the interval reaches from one to the other. Where the truth is
    geometric instead, the score lies 4 to 9 % below its half-life (half-lives of 1.5 to 30 at lags 1 to 50).
    The interval of the area is the wider, end by end, of the bootstrap's and of the one that the accuracies' own
    intervals make as independent numbers: where every answer is right the bootstrap has no width.

    A credit that is not finite makes every number NaN. Raises ``ValueError`` for fewer than three lags, a lag below 1,
    or templates that are at some lags only.
    """
    credit, at = np.asarray(credit_n, np.float64), np.asarray(lags_n)
    lags = np.unique(at)
    assert 0 < chance < 1
    assert credit.shape == at.shape == np.shape(clusters_n)
    if len(lags) < 3 or lags[0] < 1:
        raise ValueError(f"lags {lags.tolist()}: a curve needs three or more, of at least one turn")
    clusters = np.asarray(clusters_n)
    accuracies = tuple(clustered_share(credit[at == lag], clusters[at == lag], level=level) for lag in lags)
    names = tuple(int(lag) for lag in lags)
    right_LC, total_LC = _by_template(credit, at, clusters, lags)
    num_clusters = right_LC.shape[1]
    if not np.isfinite(credit).all():
        lost = Interval(math.nan, math.nan, math.nan, len(credit), num_clusters)
        return Persistence(names, accuracies, Crossing(lost, ""), Crossing(lost, ""), lost, math.nan)
    right_RL, total_RL = _resampled(right_LC, total_LC, resamples, seed)
    # the sample itself comes first
    right_RL = np.concatenate([right_LC.sum(1)[None], right_RL])
    total_RL = np.concatenate([total_LC.sum(1)[None], total_RL])
    curves = _Curves(lags, chance)
    ends_R2 = curves.fit(right_RL, total_RL)
    crossings_R, half_R = curves.crossings(ends_R2), half_lives(right_RL, total_RL, lags, chance)
    # a template is at one lag only where the lags have templates of their own
    per_lag = int((total_LC > 0).sum(1).min())
    tail = expanded_tail(per_lag, level) if per_lag > 1 else 0.0
    count = (len(credit), num_clusters)
    fitted_L = curves.accuracy(ends_R2[:1])[0]
    between = curves.flat_between(ends_R2[0])
    score = _crossing(crossings_R, names, tail, count, between)
    misfit = float(np.abs(right_RL[0] / total_RL[0] - fitted_L).max())
    area = _area(right_RL / total_RL, accuracies, curves, tail)
    return Persistence(names, accuracies, score, _crossing(half_R, names, tail, count, None), area, misfit)


def half_lives(right_RL: ArrayLike, total_RL: ArrayLike, lags_L: ArrayLike, chance: float) -> FloatArray:
    """Half-life ``[R]`` of ``acc = c + (1 - c) q^d`` by likelihood, from counts of right answers among ``total``.

    0 where everything is lost at the first lag, infinite where nothing is lost. Counts need not be whole.
    """
    right, total, lags = (np.asarray(x, np.float64) for x in (right_RL, total_RL, lags_L))
    # q^d = exp(-exp(r) d): rates from a half-life of 10,000 times the last lag to a tenth of the first
    ends = math.log(math.log(2) / (1e4 * lags[-1])), math.log(10 * math.log(2) / lags[0])

    def likelihood(rate_RG: FloatArray) -> FloatArray:
        found = np.zeros((len(right), rate_RG.shape[1]))
        for place, lag in enumerate(lags):
            p = chance + (1 - chance) * np.exp(-np.exp(rate_RG) * lag)
            found += _log_likelihood(right[:, place, None], total[:, place, None], p)
        return found

    rates_RG, step = np.tile(np.linspace(*ends, 4 * _COARSE), (len(right), 1)), (ends[1] - ends[0]) / (4 * _COARSE - 1)
    best_R = _best(likelihood(rates_RG), rates_RG)
    for _ in range(ZOOMS):
        rates_RG = np.clip(best_R[:, None] + step * np.linspace(-1, 1, _FINE), *ends)
        best_R, step = _best(likelihood(rates_RG), rates_RG), step / _CLOSER
    half_R = math.log(2) / np.exp(best_R)
    return np.where(best_R <= ends[0], np.inf, np.where(best_R >= ends[1], 0.0, half_R))


@dataclass(frozen=True)
class _Curves:
    """Logistic curves in ln d, each by its logits ``[2]`` at the smallest and the largest lag: the first not lower."""

    lags: NDArray[np.int64]
    chance: float

    @property
    def _places(self) -> FloatArray:
        """Lags ``[L]`` on a line from 0 to 1."""
        x = np.log(self.lags)
        return np.asarray((x - x[0]) / (x[-1] - x[0]))

    def accuracy(self, ends_X2: FloatArray) -> FloatArray:
        """``[..., L]`` of curves ``[..., 2]``."""
        logits = ends_X2[..., :1] + (ends_X2[..., 1:] - ends_X2[..., :1]) * self._places
        return np.asarray(self.chance + (1 - self.chance) / (1 + np.exp(-np.clip(logits, -CERTAIN, CERTAIN))))

    @property
    def weights(self) -> FloatArray:
        """Trapezoids over the logarithm of the lag ``[L]``, sum 1."""
        gaps = np.diff(self._places)
        return np.asarray((np.append(gaps, 0) + np.append(0, gaps)) / 2)

    def fit(self, right_RL: FloatArray, total_RL: FloatArray) -> FloatArray:
        """The likeliest curve ``[R, 2]`` for each row of counts."""
        # logits are sinh of what the grid is even in: fine around 0, and far where steps are
        most = math.asinh(STEEPEST)
        axis = np.linspace(-most, most, _COARSE)
        grid = np.array([(first, last) for first in axis for last in axis if last <= first])
        p_GL = self.accuracy(np.sinh(grid))
        likelihood_RG = right_RL @ np.log(p_GL).T + (total_RL - right_RL) @ np.log1p(-p_GL).T
        ends_R2, step = grid[likelihood_RG.argmax(1)], axis[1] - axis[0]
        around = np.stack(np.meshgrid(np.linspace(-1, 1, _FINE), np.linspace(-1, 1, _FINE)), -1).reshape(-1, 2)
        rows = np.arange(len(ends_R2))
        for _ in range(ZOOMS):
            ends_RG2 = np.clip(ends_R2[:, None] + step * around, -most, most)
            # never rising: beyond the diagonal stands the flat curve
            ends_RG2[..., 1] = np.minimum(ends_RG2[..., 0], ends_RG2[..., 1])
            p_RGL = self.accuracy(np.sinh(ends_RG2))
            found = _log_likelihood(right_RL[:, None], total_RL[:, None], p_RGL).sum(-1)
            ends_R2, step = ends_RG2[rows, found.argmax(1)], step / _CLOSER
        return np.asarray(np.sinh(ends_R2))

    def crossings(self, ends_R2: FloatArray) -> FloatArray:
        """Lag of the crossing ``[R]``: 0 where the curve is down from the start, infinite where it stays up."""
        first, last = ends_R2.T
        with np.errstate(divide="ignore", invalid="ignore"):
            place = first / (first - last)
        inside = self.lags[0] * (self.lags[-1] / self.lags[0]) ** np.where((first > 0) & (last <= 0), place, 0)
        return np.where(first <= 0, 0.0, np.where(last > 0, np.inf, inside))

    def flat_between(self, ends_2: FloatArray) -> tuple[float, float] | None:
        """The two lags around the crossing when the curve is all up or all down at every lag: nothing places it."""
        up_L = (self.accuracy(ends_2[None])[0] - self.chance) / (1 - self.chance)
        if np.any((up_L > UNDECIDED) & (up_L < 1 - UNDECIDED)) or up_L[0] < 0.5 or up_L[-1] > 0.5:
            return None
        last_up = int((up_L > 0.5).sum()) - 1
        return float(self.lags[last_up]), float(self.lags[last_up + 1])


def _log_likelihood(right: FloatArray, total: FloatArray, p: FloatArray) -> FloatArray:
    """Binomial, for counts that need not be whole; 0 log 0 is 0."""
    from scipy.special import xlog1py, xlogy

    return np.asarray(xlogy(right, p) + xlog1py(total - right, -p))


def _best(likelihood_RG: FloatArray, at_RG: FloatArray) -> FloatArray:
    return np.asarray(np.take_along_axis(at_RG, likelihood_RG.argmax(1)[:, None], 1)[:, 0])


def _by_template(
    credit_n: FloatArray, lags_n: ArrayLike, clusters_n: ArrayLike, lags: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Sums and counts ``[lags, clusters]``."""
    labels, column = np.unique(np.asarray(clusters_n), return_inverse=True)
    sums = np.zeros((2, len(np.asarray(lags)), len(labels)))
    row = np.searchsorted(np.asarray(lags), np.asarray(lags_n))
    np.add.at(sums[0], (row, column), credit_n)
    np.add.at(sums[1], (row, column), 1)
    return sums[0], sums[1]


def _resampled(right_LC: FloatArray, total_LC: FloatArray, resamples: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Sums and counts ``[resamples, lags]`` of templates drawn with replacement."""
    at_lags_C = (total_LC > 0).sum(0)
    num_lags, num_clusters = total_LC.shape
    random = np.random.default_rng(seed)
    if (at_lags_C == num_lags).all():
        strata = [np.arange(num_clusters)]
    elif (at_lags_C == 1).all():
        strata = [np.flatnonzero(total_LC[place]) for place in range(num_lags)]
    else:
        odd = int(((at_lags_C > 1) & (at_lags_C < num_lags)).sum())
        raise ValueError(
            f"{odd or int((at_lags_C == 1).sum())} of {num_clusters} templates are at some of the {num_lags} lags: "
            "give every lag the same templates, or each lag templates of its own"
        )
    weights_RC = np.zeros((resamples, num_clusters))
    for members in strata:
        weights_RC[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return weights_RC @ right_LC.T, weights_RC @ total_LC.T


def _area(accuracy_RL: FloatArray, accuracies: Sequence[Interval], curves: _Curves, tail: float) -> Interval:
    weights, chance = curves.weights, curves.chance
    found_R = (accuracy_RL @ weights - chance) / (1 - chance)
    value, count = float(found_R[0]), (sum(each.n for each in accuracies), max(each.n_clusters for each in accuracies))
    if not tail:
        return Interval(value, -math.inf, math.inf, *count)
    low, high = _quantiles(found_R[1:], tail)
    below = math.hypot(*(w * (each.value - each.low) for w, each in zip(weights, accuracies, strict=True)))
    above = math.hypot(*(w * (each.high - each.value) for w, each in zip(weights, accuracies, strict=True)))
    return Interval(value, min(low, value - below / (1 - chance)), max(high, value + above / (1 - chance)), *count)


def _quantiles(values: FloatArray, tail: float) -> tuple[float, float]:
    # observed values only: between a number and infinity there is nothing to interpolate
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def _crossing(
    found_R: FloatArray, lags: Sequence[int], tail: float, count: tuple[int, int], between: tuple[float, float] | None
) -> Crossing:
    """The first is the sample's, the others its resamples'."""
    low, high = _quantiles(found_R[1:], tail) if tail else (0.0, math.inf)
    value = float(found_R[0])
    if between:
        value = math.sqrt(between[0] * between[1])
        low, high = min(low, between[0]), max(high, between[1])
    # beyond the lags measured a crossing is extrapolated, and says no more than on which side it is
    low = 0.0 if low < lags[0] else min(low, float(lags[-1]))
    high = math.inf if high > lags[-1] else max(high, float(lags[0]))
    if value > lags[-1]:
        return Crossing(Interval(float(lags[-1]), low, math.inf, *count), "above")
    if value < lags[0]:
        return Crossing(Interval(float(lags[0]), 0.0, high, *count), "below")
    return Crossing(Interval(value, low, high, *count), "")
