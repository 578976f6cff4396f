"""Whether two models differ on the same items: the difference item by item, never that of two separate intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.change import difference_noise, two_sided_p
from harness.metrics.intervals import ClusterRatio, FloatArray, Interval, bootstrap_ratio, t_interval


@dataclass(frozen=True)
class PairedDifference:
    """Second less first over the same items, mean over seeds.

    over_items  interval by resampling items, seeds held fixed: these weights on other text
    over_seeds  Student's interval over the seeds' differences: other trainings on this text; infinite for one seed
    higher, lower, equal  items on which the second is above, below, and level with the first, summed over seeds
    by_seed     ``[seeds]`` difference of each seed
    p_value     two-sided, that nothing differs: the larger of the two levels', so that a claim needs both; of
                these weights alone where there is one seed
    """

    over_items: Interval
    over_seeds: Interval
    higher: int
    lower: int
    equal: int
    by_seed: tuple[float, ...]
    p_value: float

    @property
    def value(self) -> float:
        """The difference."""
        return self.over_items.value


def paired_difference(first: ArrayLike, second: ArrayLike, counts: ArrayLike, *, seed: int) -> PairedDifference:
    """Compare sums ``[seeds, items]`` of two models that share their counts ``[items]``; row s of both is one seed.

    Items that are right or wrong, each counted once, get the exact test of McNemar over items instead of the
    bootstrap's p-value. ``seed`` is that of the bootstrap. A sum that is not finite makes everything NaN.
    ``ValueError`` for other shapes or no count.
    """
    a_SI, b_SI = np.atleast_2d(np.asarray(first, np.float64)), np.atleast_2d(np.asarray(second, np.float64))
    count_I = np.asarray(counts, np.float64)
    if a_SI.shape != b_SI.shape or count_I.shape != a_SI.shape[1:] or not count_I.sum() > 0:
        raise ValueError(f"sums {a_SI.shape} and {b_SI.shape} over counts {count_I.shape}: give the same items thrice")
    num_seeds, num_items = a_SI.shape
    if not (np.isfinite(a_SI).all() and np.isfinite(b_SI).all()):
        lost = Interval(math.nan, math.nan, math.nan, num_items, num_items)
        return PairedDifference(lost, lost, 0, 0, 0, (math.nan,) * num_seeds, math.nan)
    difference_SI = b_SI - a_SI
    mean_I = difference_SI.mean(0)
    over_items = bootstrap_ratio(ClusterRatio(mean_I, count_I, num_items), seed=seed)
    by_seed = difference_SI.sum(1) / count_I.sum()
    over_seeds = t_interval(by_seed)
    higher, lower = int((mean_I > 0).sum()), int((mean_I < 0).sum())
    p_value = exact_mcnemar(higher, lower) if _right_or_wrong(a_SI, b_SI, count_I) else _p_value(over_items)
    if num_seeds > 1:
        p_value = max(p_value, _student_p(by_seed))
    return PairedDifference(
        over_items, over_seeds, higher, lower, num_items - higher - lower, tuple(by_seed.tolist()), p_value
    )


def exact_mcnemar(higher: int, lower: int) -> float:
    """Two-sided p of McNemar's test, exact: the items that differ fall to either side like a fair coin.

    higher, lower  items that the one got right and the other wrong, and the reverse; 1 when none differs.
    Source  McNemar, Psychometrika 12 (1947) 153; the exact form is the binomial test.
    """
    from scipy.special import bdtr

    discordant = higher + lower
    return min(1.0, 2 * float(bdtr(min(higher, lower), discordant, 0.5)))


def _right_or_wrong(a_SI: FloatArray, b_SI: FloatArray, count_I: FloatArray) -> bool:
    return bool(np.all(count_I == 1) and np.all(np.isin(a_SI, (0, 1))) and np.all(np.isin(b_SI, (0, 1))))


def _student_p(values_S: FloatArray) -> float:
    """Two-sided p that the mean of two or more independent values is zero."""
    from scipy.special import stdtr

    mean, error = float(values_S.mean()), float(values_S.std(ddof=1)) / math.sqrt(len(values_S))
    if error == 0:
        return 0.0 if mean else 1.0
    return 2 * float(stdtr(len(values_S) - 1, -abs(mean) / error))


def _p_value(interval: Interval) -> float:
    """Two-sided p by the half of the 90 % interval that faces zero: below .1 exactly when zero lies outside."""
    if interval.value == 0:
        return 1.0
    if interval.low == interval.high:
        # every resample gives the same difference, as where a constant was added
        return 0.0
    noise = difference_noise(interval.value, interval.ci, 0.0, (0.0, 0.0))
    if math.isnan(noise):
        # the value of a skewed bootstrap may lie outside its interval
        return 0.0 if interval.low > 0 or interval.high < 0 else 1.0
    return two_sided_p(interval.value, noise)
