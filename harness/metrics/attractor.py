"""Do shares that start apart end at one place? A line through ends over starts, its fixed point, and what it hides."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, Interval, t_interval
from harness.metrics.trend import UnderpoweredError

FloatArray = NDArray[np.float64]

MIN_STARTS, MIN_SEEDS = 4, 3
"""A line through three starts leaves one place to see a bend; two seeds have a spread of one number."""

KEPT = 0.25
"""Ends that keep at most this part of the distances between the starts are at one place; that lose no more, at home."""

HALF = 0.5
"""Ends that keep more of the starts' distances than this are nearer to them than to any fixed point."""

SPREAD_LIMIT = 0.5
"""Ends as far from each other as half the starts are not at one place, whatever the line says."""

SCATTER_LIMIT = 0.1
"""Residuals below this part of what the gates moved are no second place, however surely they are no noise."""

ROUNDING = 1e-6
"""Logits of shares that were read in fp32 are no closer to each other than that."""

SIGNIFICANT = 0.05
NULL_DRAWS = 4000


@dataclass(frozen=True)
class Attraction:
    r"""Where ``k`` starts, each trained with ``s`` seeds, end; x and y are logits of the initial and the final share.

        y = a + b x        b = 1: gates stay where they start;  b = 0: all end at one place;  between: pulled

    slope        b, Student's interval over seeds, each seed with a line of its own
    intercept    a, the same
    fixed_point  1 / (1 + exp(-a / (1 - b))), the share at which the line stays where it is; Fieller's interval over
                 seeds. None where b's interval reaches 1: such a place need not exist, and beyond 1 it repels
    spread       standard deviation of the final shares over that of the initial ones (shares, not logits)
    scatter      root mean square of the residuals over that of the moves y - x (logits)
    misfit_p     that the starts' means lie on a line: F of what it misses, against start x seed
    uneven_p     that the seeds of every start end equally far apart: Cochran's C (Bonferroni's bound)
    gap_p        that the residuals have no gap in their midst: against normal noise, drawn
    meeting      pairs of starts ``(i, j)`` whose ends overlap over seeds. Two of the same distribution do so in 9 of
                 10 cases with three seeds
    starts       number of starts
    """

    slope: Interval
    intercept: Interval
    fixed_point: Interval | None
    spread: float
    scatter: float
    misfit_p: float
    uneven_p: float
    gap_p: float
    meeting: tuple[tuple[int, int], ...]
    starts: int

    @property
    def meeting_share(self) -> float:
        """Pairs of starts whose ends overlap, of all pairs."""
        return len(self.meeting) / math.comb(self.starts, 2)

    @property
    def one_line(self) -> bool:
        """Whether a line says it all: the residuals are small, or none of three tests (Bonferroni) finds more there."""
        least = min(self.misfit_p, self.uneven_p, self.gap_p)
        return self.scatter <= SCATTER_LIMIT or 3 * least >= SIGNIFICANT

    @property
    def place(self) -> Interval | None:
        """The fixed point, where a line is all there is: the fixed point of a line through two places is neither."""
        return self.fixed_point if self.one_line else None

    @property
    def extrapolated(self) -> bool:
        """Whether the fixed point lies beyond what was seen: the ends kept over half of the starts' distances."""
        return self.slope.value > HALF

    @property
    def is_attractor(self) -> bool:
        """Whether all end at one place: shown to keep little of where they started, not merely not shown to keep it."""
        near = max(-self.slope.low, self.slope.high) <= KEPT
        return self.one_line and near and self.spread <= SPREAD_LIMIT

    @property
    def verdict(self) -> str:
        """What the ends say of the starts, in words."""
        if not self.one_line:
            return "no single line: more than one place, or a bend"
        if self.is_attractor:
            return "one place, whatever the start"
        low, high = self.slope.ci
        if low >= 1 - KEPT and high <= 1 + KEPT:
            return "each near its start"
        if low > 1:
            return "driven apart"
        if high < 1:
            return "pulled towards one place" if low > 0 else "pulled, the place of the start not shown to matter"
        return "not shown to be pulled" if low > 0 else "undecided: the seeds differ too much"


def logit(share: ArrayLike) -> FloatArray:
    """ln(p / (1 - p)) of shares strictly between 0 and 1, any shape."""
    p = np.asarray(share, dtype=np.float64)
    assert bool(((p > 0) & (p < 1)).all()), "a share of 0 or 1 has no logit"
    return np.log(p) - np.log1p(-p)


def attraction(initial_K: ArrayLike, final_KS: ArrayLike, *, level: float = LEVEL) -> Attraction:
    """Fit ends over starts: initial shares ``[K]``, final shares ``[K, S]``, one column a seed.

    The interval of b takes the seed as what is drawn: a seed shares its text and its start of all other weights over
    the K trainings. What a line cannot follow does not widen it; it shows in ``misfit_p``, ``uneven_p`` and ``gap_p``.
    Raises ``UnderpoweredError`` for too few starts or seeds, and for a share that is not strictly between 0 and 1.
    Source  interval of a ratio: Fieller, J. R. Stat. Soc. B 16 (1954) 175; C: Cochran, Ann. Eugen. 11 (1941) 47.
    """
    p_K, p_KS = np.asarray(initial_K, dtype=np.float64), np.asarray(final_KS, dtype=np.float64)
    assert p_KS.ndim == 2
    assert p_K.shape == p_KS.shape[:1]
    _require_enough(p_K, p_KS)
    x_K, y_KS = logit(p_K), logit(p_KS)
    centred_K = x_K - x_K.mean()
    slopes_S = centred_K @ y_KS / (centred_K @ centred_K)
    intercepts_S = y_KS.mean(0) - slopes_S * x_K.mean()
    slope, intercept = t_interval(slopes_S, level), t_interval(intercepts_S, level)
    residual_KS = y_KS - intercept.value - slope.value * x_K[:, None]
    lows_K, highs_K = p_KS.min(1), p_KS.max(1)
    return Attraction(
        slope,
        intercept,
        _fixed_point(intercepts_S, 1 - slopes_S, level) if slope.high < 1 else None,
        float(p_KS.std() / p_K.std()),
        _scatter(residual_KS, y_KS - x_K[:, None]),
        _misfit(residual_KS, y_KS),
        _uneven(y_KS),
        _gap(residual_KS, x_K),
        tuple(
            (i, j) for i, j in combinations(range(len(p_K)), 2)
            if lows_K[i] <= highs_K[j] and lows_K[j] <= highs_K[i]
        ),
        len(p_K),
    )  # fmt: skip


def _require_enough(p_K: FloatArray, p_KS: FloatArray) -> None:
    starts, seeds = len(np.unique(p_K)), p_KS.shape[1]
    if starts < max(MIN_STARTS, len(p_K)) or seeds < MIN_SEEDS:
        raise UnderpoweredError(
            f"{starts} different of {len(p_K)} starts and {seeds} seeds: a line whose bend can be seen needs "
            f"{MIN_STARTS} starts, all different, and an interval {MIN_SEEDS} seeds"
        )
    for what, shares in (("initial", p_K), ("final", p_KS)):
        inside = (shares > 0) & (shares < 1)
        if not inside.all():
            raise UnderpoweredError(
                f"a {what} share is {shares[~inside].flat[0]:g}: only one inside (0, 1) has a logit"
            )


def _fixed_point(above_S: FloatArray, below_S: FloatArray, level: float) -> Interval:
    """Mean of ``a`` over mean of ``1 - b``, as a share: Fieller's interval, bounded as 1 - b is apart from 0."""
    from scipy.special import expit, stdtrit

    seeds = len(above_S)
    mean_a, mean_c = float(above_S.mean()), float(below_S.mean())
    (s_aa, s_ac), (_, s_cc) = np.cov(above_S, below_S) * float(stdtrit(seeds - 1, 0.5 + level / 2)) ** 2 / seeds
    square, middle, rest = mean_c**2 - s_cc, mean_a * mean_c - s_ac, mean_a**2 - s_aa
    assert square > 0, "the interval of b ends below 1"
    # rounding may take it below 0 where all seeds agree
    half = math.sqrt(max(middle**2 - square * rest, 0.0))
    low, high = float(expit((middle - half) / square)), float(expit((middle + half) / square))
    return Interval(float(expit(mean_a / mean_c)), low, high, seeds, seeds)


def _scatter(residual_KS: FloatArray, move_KS: FloatArray) -> float:
    missed, moved = (math.sqrt(float((logits_KS**2).mean())) for logits_KS in (residual_KS, move_KS))
    return missed / moved if missed > ROUNDING else 0.0


def _misfit(residual_KS: FloatArray, y_KS: FloatArray) -> float:
    from scipy.special import fdtrc

    starts, seeds = y_KS.shape
    missed = seeds * float((residual_KS.mean(1) ** 2).sum()) / (starts - 2)
    noise_KS = y_KS - y_KS.mean(1, keepdims=True) - y_KS.mean(0) + y_KS.mean()
    free = (starts - 1) * (seeds - 1)
    noise = float((noise_KS**2).sum()) / free
    # equal to the last bit: whatever is missed is no noise
    return float(fdtrc(starts - 2, free, missed / noise)) if noise > 0 else float(missed == 0)


def _uneven(y_KS: FloatArray) -> float:
    from scipy.special import betainc

    starts, seeds = y_KS.shape
    variances_K = y_KS.var(1, ddof=1)
    if not variances_K.sum() > 0:
        return 1.0
    largest, half = float(variances_K.max() / variances_K.sum()), (seeds - 1) / 2
    beyond = float(betainc((starts - 1) * half, half, 1 - largest))
    return float(min(1.0, starts * beyond))


def _gap(residual_KS: FloatArray, x_K: FloatArray) -> float:
    found = float(_inner_gap(residual_KS.ravel()))
    if not found > 0:
        return 1.0
    null_N = _gaps_of_noise(tuple(x_K.tolist()), residual_KS.shape[1])
    beyond = int((null_N >= found).sum())
    return (1 + beyond) / (1 + len(null_N))


def _inner_gap(values: FloatArray) -> FloatArray:
    """The largest gap ``[...]`` between neighbours of ``[..., n]``, over their spread, that parts off no outlier.

    A quarter of the values lies on either side of it.
    """
    ordered = np.sort(values, axis=-1)
    edge = max(1, values.shape[-1] // 4)
    gaps = np.diff(ordered, axis=-1)[..., edge - 1 : values.shape[-1] - edge]
    spread = values.std(-1)
    found: FloatArray = np.divide(gaps.max(-1), spread, out=np.zeros_like(spread), where=spread > 0)
    return found


@lru_cache(maxsize=8)
def _gaps_of_noise(starts: tuple[float, ...], seeds: int) -> FloatArray:
    """``_inner_gap`` of residuals of normal noise about the same design: it does not depend on line and spread."""
    y_NKS = np.random.default_rng(0).standard_normal((NULL_DRAWS, len(starts), seeds))
    x_K = np.array(starts) - np.mean(starts)
    slope_N = np.einsum("k,nks->n", x_K, y_NKS) / (seeds * float(x_K @ x_K))
    residual_NKS = y_NKS - y_NKS.mean((1, 2), keepdims=True) - slope_N[:, None, None] * x_K[:, None]
    return _inner_gap(residual_NKS.reshape(NULL_DRAWS, -1))
