"""Does a noisy series fall? Block means no shorter than the noise remembers, Mann-Kendall, Theil-Sen.

Comparing the mean of the last steps with that of the first, or running Mann-Kendall on raw steps, calls a
trendless autocorrelated series a falling one in 30 to 50 % of cases: docs/metrics.md shows the simulation.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Fewer blocks than this cannot carry the verdict: five cannot reach p < .01 whatever they show, and with six or
# seven the autocorrelation time comes from a series too short to estimate it (ADR-0007)
MIN_BLOCKS = 8
MAX_BLOCKS = 20
TAUS_PER_BLOCK = 5
# Sokal's window: the sum of autocorrelations stops at the first lag beyond this many autocorrelation times
SOKAL_WINDOW = 5
# Learning curves are not straight in log(step). What a parabola leaves over is noise, not memory.
DETREND_DEGREE = 2


class UnderpoweredError(ValueError):
    """The series is too short, or its noise too persistent, to tell a trend from noise. A check reports INVALID."""


@dataclass(frozen=True)
class TrendResult:
    """The trend of a loss.

    p_value    one-sided, of the hypothesis that the loss does not fall
    slope      nats per e-fold of steps (Theil-Sen)
    slope_ci   its two-sided interval at the level that was asked for
    blocks     block means that were tested
    block_len  steps a block
    tau        integrated autocorrelation time of the noise, in steps
    """

    p_value: float
    slope: float
    slope_ci: tuple[float, float]
    blocks: int
    block_len: int
    tau: float


def _finite(values: ArrayLike, what: str) -> FloatArray:
    """Values as a flat fp64 array. ``UnderpoweredError`` when there are none to speak of, or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 3:
        raise UnderpoweredError(f"{what} has shape {array.shape}; a trend needs one dimension of at least 3 values")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise UnderpoweredError(
            f"{what} holds {array[bad[0]]} at index {bad[0]}; a trend is defined on finite values, "
            "so look at the training log first"
        )
    return array


def autocorrelation_time(values: ArrayLike, fitted: int = 1) -> float:
    r"""Integrated autocorrelation time, in steps: how long the noise of a series remembers.

        tau = 1/2 + sum_{k=1}^{M} rho_k,    M the first lag with M >= 5 tau(M)

    The variance of a mean of n values is 2 tau / n times that of one value. White noise gives 1/2, AR(1) noise
    1/2 + phi / (1 - phi). Never below 1/2: a series that alternates is treated as white, on the safe side.
    A constant series gives 1/2. Remove any trend first: it would count as memory.

    ``fitted`` counts the parameters taken out before, the mean among them. They take p 2 tau / n off every rho_k,
    so the sum is divided by 1 - 2 p M / n; infinite where that is not positive and nothing can be said.

    Source  Sokal, "Monte Carlo methods in statistical mechanics" (1996), section 3; the division is ours, ADR-0007.
    """
    array = _finite(values, "the series")
    centred = array - array.mean()
    if not np.any(centred):
        return 0.5
    n = len(centred)
    # twice the length keeps the ends of the circular correlation apart
    spectrum = np.fft.rfft(centred, 2 * n)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: n // 2 + 1]
    tau = 0.5 + np.cumsum(covariance[1:] / covariance[0])
    closed = np.flatnonzero(np.arange(1, len(tau) + 1) >= SOKAL_WINDOW * tau)
    last = int(closed[0]) if len(closed) else len(tau) - 1
    kept = 1 - 2 * fitted * (last + 1) / n
    return max(float(tau[last]) / kept, 0.5) if kept > 0 else math.inf


def theil_sen(x: ArrayLike, y: ArrayLike, level: float = 0.9, inflation: float = 1.0) -> tuple[float, float, float]:
    """Median of pairwise slopes with Sen's interval: ``(slope, low, high)``, in units of y over units of x.

    ``x`` must increase strictly. ``inflation`` multiplies the variance of Kendall's S (Hamed-Rao). The interval
    is unbounded where the sample is too small for the level.
    Source  Sen, J. Am. Stat. Assoc. 63 (1968) 1379.
    """
    xs, ys = _finite(x, "x"), _finite(y, "y")
    assert len(xs) == len(ys)
    assert np.all(np.diff(xs) > 0)
    first, second = np.triu_indices(len(xs), 1)
    slopes = np.sort((ys[second] - ys[first]) / (xs[second] - xs[first]))
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(kendall_variance(ys) * inflation)
    below = math.floor((len(slopes) - half) / 2) - 1
    above = math.ceil((len(slopes) + half) / 2)
    low = float(slopes[below]) if below >= 0 else -math.inf
    high = float(slopes[above]) if above < len(slopes) else math.inf
    return float(np.median(slopes)), low, high


def kendall_variance(values: ArrayLike) -> float:
    """Variance of Kendall's S for n independent values, with the correction for ties (Kendall 1975, chapter 4)."""
    ys = _finite(values, "the series")
    _, ties = np.unique(ys, return_counts=True)
    sizes = np.append(ties[ties > 1], 0).astype(np.float64)
    n = len(ys)
    return float(n * (n - 1) * (2 * n + 5) - np.sum(sizes * (sizes - 1) * (2 * sizes + 5))) / 18


def hamed_rao_inflation(x: ArrayLike, y: ArrayLike) -> float:
    r"""Factor by which autocorrelation inflates the variance of Kendall's S.

        1 + 2 / (n (n-1) (n-2)) sum_k (n-k)(n-k-1)(n-k-2) rho_k

    over the autocorrelations rho_k of the ranks of the detrended series that differ from zero at 5 %. Never
    below 1: taking out a trend makes neighbours look opposed, and a factor below 1 would reward that.

    Source  Hamed & Rao, J. Hydrology 204 (1998) 182, equation 10 (the bound is ours, ADR-0007).
    """
    xs, ys = _finite(x, "x"), _finite(y, "y")
    n = len(ys)
    slope, _, _ = theil_sen(xs, ys)
    ranks = np.argsort(np.argsort(ys - slope * xs, kind="stable"), kind="stable").astype(np.float64)
    ranks -= ranks.mean()
    lags = np.arange(1, n - 2)
    rho = np.array([np.dot(ranks[:-lag], ranks[lag:]) for lag in lags]) / np.dot(ranks, ranks)
    rho[np.abs(rho) < NormalDist().inv_cdf(0.975) / math.sqrt(n)] = 0
    weights = (n - lags) * (n - lags - 1) * (n - lags - 2)
    return max(float(1 + 2 * np.dot(weights, rho) / (n * (n - 1) * (n - 2))), 1.0)


def mann_kendall(values: ArrayLike, inflation: float = 1.0) -> float:
    """One-sided p-value of the hypothesis that a series does not fall; small means it falls.

    Normal approximation with continuity correction. Values of one size throughout give 1.
    Source  Mann, Econometrica 13 (1945) 245; Kendall, "Rank correlation methods" (1975).
    """
    ys = _finite(values, "the series")
    variance = kendall_variance(ys) * inflation
    if variance == 0:
        return 1.0
    first, second = np.triu_indices(len(ys), 1)
    score = float(np.sign(ys[second] - ys[first]).sum())
    return NormalDist().cdf((score - math.copysign(min(1.0, abs(score)), score)) / math.sqrt(variance))


def detrend(steps: ArrayLike, values: ArrayLike) -> FloatArray:
    """Take a parabola in log(step) out of a learning curve: what is left, in the units of the values."""
    xs, ys = np.log(_finite(steps, "steps")), _finite(values, "values")
    centred = (xs - xs.mean()) / xs.std()
    coefficients = np.polynomial.polynomial.polyfit(centred, ys, DETREND_DEGREE)
    return np.asarray(ys - np.polynomial.polynomial.polyval(centred, coefficients), dtype=np.float64)


def noise_memory(steps: ArrayLike, values: ArrayLike, decay_from: float | None = None) -> float:
    """Autocorrelation time of the noise of a learning curve, in steps; what its trend leaves over.

    ``decay_from`` is the first step at which the learning rate falls: the curve bends there, and one parabola for
    both phases would leave that bend as memory. Each phase has a parabola of its own, unless one is too short.
    """
    xs, ys = _finite(steps, "steps"), _finite(values, "values")
    cut = len(xs) if decay_from is None else int(np.searchsorted(xs, decay_from))
    fitted = DETREND_DEGREE + 1
    if min(cut, len(xs) - cut) < 2 * fitted:
        return autocorrelation_time(detrend(xs, ys), fitted)
    phases = [detrend(xs[phase], ys[phase]) for phase in (slice(None, cut), slice(cut, None))]
    return autocorrelation_time(np.concatenate(phases), 2 * fitted)


def loss_trend(steps: ArrayLike, losses: ArrayLike, level: float = 0.9, decay_from: float | None = None) -> TrendResult:
    """Test whether a training loss falls, on means of blocks at least five autocorrelation times long.

    ``steps`` (from 1, increasing) and ``losses`` (nats a token) cover the training after warm-up; ``decay_from`` is
    the first of them at which the learning rate falls, if it does. At most ``MAX_BLOCKS`` blocks; the count shrinks
    until the blocks are long enough. The first steps that do not fill a block are left out.

    Raises ``UnderpoweredError`` when fewer than ``MIN_BLOCKS`` blocks remain, or a value is not finite.
    """
    xs, ys = _finite(steps, "steps"), _finite(losses, "losses")
    if len(xs) != len(ys) or xs[0] < 1 or np.any(np.diff(xs) <= 0):
        raise ValueError(f"{len(xs)} steps from {xs[0]:g} for {len(ys)} losses: give increasing steps, one a loss")
    if len(xs) < MIN_BLOCKS * math.ceil(TAUS_PER_BLOCK / 2):
        raise UnderpoweredError(
            f"{len(xs)} steps after warm-up are too few: {MIN_BLOCKS} blocks of white noise need "
            f"{MIN_BLOCKS * math.ceil(TAUS_PER_BLOCK / 2)}; train longer (--set train.steps=...)"
        )
    tau = noise_memory(xs, ys, decay_from)
    block_len = math.ceil(min(max(TAUS_PER_BLOCK * tau, len(xs) / MAX_BLOCKS), len(xs)))
    blocks = len(xs) // block_len
    if blocks < MIN_BLOCKS:
        raise UnderpoweredError(
            f"the loss noise remembers {tau:.0f} steps, so {len(xs)} steps make {blocks} independent blocks of "
            f"{block_len}; the test needs {MIN_BLOCKS}; train at least {MIN_BLOCKS * block_len} steps after warm-up"
        )
    kept = blocks * block_len
    block_x = np.log(xs[-kept:]).reshape(blocks, block_len).mean(1)
    block_y = ys[-kept:].reshape(blocks, block_len).mean(1)
    inflation = hamed_rao_inflation(block_x, block_y)
    slope, low, high = theil_sen(block_x, block_y, level, inflation)
    return TrendResult(mann_kendall(block_y, inflation), slope, (low, high), blocks, block_len, tau)
