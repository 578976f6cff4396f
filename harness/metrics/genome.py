"""Do dialogues fall into types by how the state moves over their turns? Clusters, and whether they can be trusted."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STABLE = 0.6
"""Mean adjusted Rand index below which clusters are not reported."""

MOST_CLUSTERS = 8
REFERENCES = 20
BOOTSTRAPS = 100
SHUFFLES = 20
NULL_BOOTSTRAPS = 20


@dataclass(frozen=True)
class Genome:
    """Types of dialogues, if any.

    clusters    k by the gap statistic; 1 says that there are no types
    labels      ``[dialogues]`` type of each, 0 .. k - 1, the largest first
    stability   mean adjusted Rand index of the clusters of bootstrap samples with these; NaN for one cluster
    null        the largest such mean among sets of dialogues whose turns were shuffled, at the same k; NaN for one
    reportable  more than one cluster, stability at least ``STABLE``, and above the null
    """

    clusters: int
    labels: tuple[int, ...]
    stability: float
    null: float

    @property
    def reportable(self) -> bool:
        """Whether the clusters may be shown at all. NaN compares as false."""
        return self.clusters > 1 and self.stability >= STABLE and self.stability > self.null


def genome(features_nTF: ArrayLike, *, seed: int, most: int = MOST_CLUSTERS) -> Genome:
    """Cluster dialogues by their features a turn ``[dialogues, turns, features]``; descriptive, never a verdict.

    Each feature is standardised over all dialogues and turns; Ward's method clusters the flattened dialogues. Shuffling
    the turns within each dialogue, all features together, keeps what a dialogue is like and takes its course away:
    types that differ in level alone are as stable when shuffled, and are not reported as courses.
    Raises ``ValueError`` for values that are not finite, fewer than 3 dialogues a cluster, or fewer than two turns.
    """
    features = np.asarray(features_nTF, np.float64)
    if features.ndim != 3 or len(features) < 3 * most or features.shape[1] < 2 or not np.isfinite(features).all():
        raise ValueError(
            f"features of shape {features.shape}: give finite [dialogues, turns, features] with two turns or more "
            f"and at least {3 * most} dialogues for up to {most} clusters"
        )
    random = np.random.default_rng(seed)
    standard = standardise(features)
    points = standard.reshape(len(standard), -1)
    k = clusters_by_gap(points, most=most, seed=int(random.integers(2**32)))
    labels = ward(points, [k])[0]
    if k == 1:
        return Genome(1, tuple(labels.tolist()), math.nan, math.nan)
    found = stability(points, k, BOOTSTRAPS, random)
    null = max(
        stability(_turns_shuffled(standard, random).reshape(points.shape), k, NULL_BOOTSTRAPS, random)
        for _ in range(SHUFFLES)
    )
    return Genome(k, tuple(labels.tolist()), found, null)


def standardise(features_nTF: FloatArray) -> FloatArray:
    """Mean 0 and deviation 1 of each feature over dialogues and turns; 0 where it does not vary."""
    mean, spread = features_nTF.mean((0, 1)), features_nTF.std((0, 1))
    varies = spread > 1e-12 * (np.abs(mean) + 1e-30)
    return np.asarray((features_nTF - mean) * np.divide(1.0, spread, out=np.zeros_like(spread), where=varies))


def ward(points_nd: FloatArray, counts: list[int]) -> list[IntArray]:
    """Labels ``[n]`` for each number of clusters, the largest cluster being 0; fewer where points are the same.

    It has no random start.

    Source  Ward, J. Am. Stat. Assoc. 58 (1963) 236.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(points_nd, "ward")
    return [_by_size(fcluster(tree, count, "maxclust")) for count in counts]


def clusters_by_gap(points_nd: FloatArray, *, most: int = MOST_CLUSTERS, seed: int) -> int:
    r"""Number of clusters by the gap statistic, 1 among the answers.

        Gap(k) = mean_b log W_b(k) - log W(k);   smallest k with Gap(k) >= Gap(K) - 2 s(K), K where the gap is largest

    W is the sum of squares within clusters. References are uniform in the box along the principal axes of the points.
    One when all points are the same. The original rule compares k with k + 1 alone, one s(k + 1) apart, and finds one
    cluster in three on a line, since two are no better than one there. This one takes a single cloud of 60 to 200
    points for several in at most 2 % of samples (normal, random walks, slopes, Student's t of 3 degrees of freedom).
    Source  Tibshirani, Walther & Hastie, J. R. Stat. Soc. B 63 (2001) 411, sections 3 and 4 (choice b).
    """
    random = np.random.default_rng(seed)
    centred = points_nd - points_nd.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    turned = centred @ axes.T
    low, high = turned.min(0), turned.max(0)
    if np.all(high - low < 1e-12):
        return 1
    observed = _log_within(turned, most)
    references = np.array([_log_within(random.uniform(low, high, turned.shape), most) for _ in range(REFERENCES)])
    gap = references.mean(0) - observed
    error = references.std(0) * math.sqrt(1 + 1 / REFERENCES)
    best = int(gap.argmax())
    return int((gap >= gap[best] - 2 * error[best]).argmax()) + 1


def stability(points_nd: FloatArray, k: int, bootstraps: int, random: np.random.Generator) -> float:
    """Mean adjusted Rand index: clusters of a bootstrap sample against those of all points, on the points drawn."""
    whole = ward(points_nd, [k])[0]
    found = []
    for _ in range(bootstraps):
        # a point drawn twice agrees with itself whatever the clusters are, so each counts once
        drawn = np.sort(random.integers(0, len(points_nd), len(points_nd)))
        places, first = np.unique(drawn, return_index=True)
        labels = ward(points_nd[drawn], [k])[0]
        found.append(adjusted_rand(whole[places], labels[first]))
    return float(np.mean(found))


def adjusted_rand(first_n: ArrayLike, second_n: ArrayLike) -> float:
    """Agreement of two partitions: 1 when they are the same, 0 as expected of random ones of the same sizes.

    1 where there is nothing to disagree on: both put all points together, or each apart.
    Source  Hubert & Arabie, J. Classif. 2 (1985) 193.
    """
    a, b = (np.unique(np.asarray(x), return_inverse=True)[1] for x in (first_n, second_n))
    assert a.shape == b.shape
    assert len(a) > 1
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    together, rows, columns = (float((x * (x - 1) / 2).sum()) for x in (table, table.sum(1), table.sum(0)))
    expected = rows * columns / (len(a) * (len(a) - 1) / 2)
    most = (rows + columns) / 2
    return (together - expected) / (most - expected) if most != expected else 1.0


def _turns_shuffled(features_nTF: FloatArray, random: np.random.Generator) -> FloatArray:
    order = random.random(features_nTF.shape[:2]).argsort(1)
    return np.take_along_axis(features_nTF, order[:, :, None], 1)


def _log_within(points_nd: FloatArray, most: int) -> FloatArray:
    """Log of the sum of squares within clusters ``[most]``, for 1 .. most clusters."""
    found = []
    for labels in ward(points_nd, list(range(1, most + 1))):
        sizes = np.bincount(labels)
        means = np.zeros((len(sizes), points_nd.shape[1]))
        np.add.at(means, labels, points_nd)
        found.append(((points_nd - (means / sizes[:, None])[labels]) ** 2).sum())
    # fewer different points than clusters leave nothing within: a very small number instead of none
    return np.asarray(np.log(np.maximum(found, 1e-300)))


def _by_size(labels_n: NDArray[np.generic]) -> IntArray:
    """Renamed so that 0 is the largest; ties in the order of first appearance."""
    _, first, index, sizes = np.unique(labels_n, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    names = np.empty(len(order), np.int64)
    names[order] = np.arange(len(order))
    return np.asarray(names[index])
