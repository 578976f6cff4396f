"""Shares of right answers when items come in clusters, such as questions that share a template."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, Interval, design_effect, wilson

FloatArray = NDArray[np.float64]

ASSUMED_ICC = 0.1
"""Correlation within a template where it cannot be estimated: all right, all wrong, or few templates."""

ENOUGH_CLUSTERS = 20
"""With fewer clusters an estimated correlation below ``ASSUMED_ICC`` is not believed."""


def intraclass_correlation(values_n: ArrayLike, clusters_n: ArrayLike) -> float:
    r"""Share of the variance of ``values [n]`` that lies between ``clusters [n]``: one-way analysis of variance.

        rho = (MSB - MSW) / (MSB + (m0 - 1) MSW),   m0 = (n - sum m_j^2 / n) / (clusters - 1)

    Negative where clusters differ by less than chance. NaN where nothing can be said: one cluster, no cluster of two
    values, no variance at all, or a value that is not finite.
    Source  Donner, Int. Stat. Rev. 54 (1986) 67, equation 2.1.
    """
    values = np.asarray(values_n, np.float64)
    index = np.unique(np.asarray(clusters_n), return_inverse=True)[1]
    assert values.shape == index.shape
    sizes = np.bincount(index).astype(np.float64)
    n, clusters = len(values), len(sizes)
    if clusters < 2 or n == clusters or not np.isfinite(values).all() or np.ptp(values) == 0:
        return math.nan
    means = np.bincount(index, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (clusters - 1)
    within = float(((values - means[index]) ** 2).sum()) / (n - clusters)
    size = (n - float((sizes**2).sum()) / n) / (clusters - 1)
    return (between - within) / (between + (size - 1) * within)


def clustered_share(credit_n: ArrayLike, clusters_n: ArrayLike, *, level: float = LEVEL) -> Interval:
    r"""Mean of ``credit [n]``, each in [0, 1], with Wilson's interval on an effective number of items.

        deff = s^2 / (p (1 - p)) * (1 + (m - 1) ICC) * (t / z)^2,   at least 1;   m = sum m_j^2 / n

    The ICC is measured, and 0 where it comes out negative. All right or all wrong tells nothing of it: it is then
    ``ASSUMED_ICC``, and with fewer than ``ENOUGH_CLUSTERS`` clusters at least that. t / z, Student's quantile over the
    normal one at clusters - 1, pays for the estimate. s^2 / (p (1 - p)) is 1 for right and wrong, and less for shares,
    such as means over seeds. A credit of NaN makes everything NaN; one cluster leaves 0 to 1.

    A nominal 5 % beyond the low end is, simulated at ICC 0, .1, .3: 4, 5, 6 % for 40 clusters of 10 at p = .85;
    3, 6, 9 % at p = .95; 1, 1, 6 % for 8 clusters of 10 at p = .85 (3, 7, 11 % with neither t / z nor the floor).
    Source  Korn & Graubard, Surv. Methodol. 24 (1998) 193, section 2, for t / z.
    """
    from scipy.special import ndtri, stdtrit

    credit = np.asarray(credit_n, np.float64)
    sizes = np.unique(np.asarray(clusters_n), return_counts=True)[1]
    n, clusters = len(credit), len(sizes)
    if n == 0 or sizes.sum() != n:
        raise ValueError(f"{n} credits in {sizes.sum()} labelled places: a share needs one label an item, and an item")
    share = float(credit.mean())
    if not np.isfinite(credit).all():
        return Interval(math.nan, math.nan, math.nan, n, clusters)
    if credit.min() < 0 or credit.max() > 1:
        raise ValueError(f"credits from {credit.min():g} to {credit.max():g}: a share needs values from 0 to 1")
    if clusters < 2:
        return Interval(share, 0.0, 1.0, n, clusters)
    measured = intraclass_correlation(credit, clusters_n)
    unknown = math.isnan(measured) and n > clusters
    icc = ASSUMED_ICC if unknown else max(0.0, 0.0 if math.isnan(measured) else measured)
    if clusters < ENOUGH_CLUSTERS:
        icc = max(icc, ASSUMED_ICC)
    spread = share * (1 - share)
    narrowed = float(credit.var()) / spread if spread > 0 else 1.0
    quantile = 0.5 + level / 2
    paid = (float(stdtrit(clusters - 1, quantile)) / float(ndtri(quantile))) ** 2
    size = float((sizes**2).sum()) / n
    deff = max(1.0, narrowed * design_effect(size, icc) * paid)
    # rounding of the mean must not leave 0 .. n
    found = wilson(min(max(float(credit.sum()), 0.0), n), n, deff=deff, level=level)
    return Interval(share, found.low, found.high, n, clusters)


def smallest_passing(n: int, limit: float, *, deff: float = 1.0, level: float = LEVEL) -> float:
    """Smallest share k / n whose lower bound by Wilson reaches ``limit``; NaN when even n of n does not."""
    from scipy.optimize import brentq

    assert 0 < limit < 1
    if wilson(n, n, deff=deff, level=level).low < limit:
        return math.nan
    # the bound rises with k: find where it crosses, then the next whole number
    crossing = brentq(lambda k: wilson(k, n, deff=deff, level=level).low - limit, 0, n, xtol=1e-9)
    return math.ceil(float(crossing) - 1e-6) / n


def detectable(n: int, limit: float, *, power: float, deff: float = 1.0, level: float = LEVEL) -> float:
    """Smallest true share that passes ``smallest_passing`` with probability ``power``; NaN when none does.

    The count is binomial with n / deff effective items, taken as continuous through the incomplete beta function.
    """
    from scipy.special import betaincinv

    passing = smallest_passing(n, limit, deff=deff, level=level)
    if math.isnan(passing):
        return math.nan
    items = n / deff
    # P(X >= k | p) = I_p(k, items - k + 1)
    return float(betaincinv(passing * items, items - passing * items + 1, power))
