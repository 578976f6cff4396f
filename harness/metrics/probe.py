"""Linear probes: what a linear reader finds in a representation, and how much of it is worth anything, in nats."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PENALTIES = (0.1, 1.0, 10.0)
"""Candidate strengths of the L2 penalty, chosen on held-out groups of the training half."""


@dataclass(frozen=True)
class Probe:
    """A fitted multinomial logistic regression over standardised features.

    mean, scale ``[d]`` of the training half; weights ``[d, classes]``, bias ``[classes]``
    prior ``[classes]``: smoothed frequencies of the training labels, the best guess of a reader that sees nothing
    """

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    prior: Floats

    def log_probabilities(self, features_nd: ArrayLike) -> Floats:
        """``[n, classes]``, in nats."""
        standard = (np.asarray(features_nd, dtype=np.float64) - self.mean) * self.scale
        return _log_softmax(standard @ self.weights + self.bias)


def fit_probe(features_nd: ArrayLike, labels_n: ArrayLike, classes: int, penalty: float) -> Probe:
    """Minimise mean cross-entropy + penalty / 2 ||W||^2 by L-BFGS in float64; the bias is free.

    Features that do not vary are left out of account. The problem is strictly convex: there is one answer.
    """
    from scipy.optimize import minimize

    assert penalty > 0
    x, y = np.asarray(features_nd, dtype=np.float64), np.asarray(labels_n)
    assert x.ndim == 2
    assert y.shape == (len(x),)
    mean, spread = x.mean(0), x.std(0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12 * (np.abs(mean) + 1e-30))
    x = (x - mean) * scale
    chosen = np.eye(classes)[y]

    def objective(flat: Floats) -> tuple[float, Floats]:
        weights, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        log_p = _log_softmax(x @ weights + bias)
        error = (np.exp(log_p) - chosen) / len(x)
        loss = -float((log_p * chosen).sum()) / len(x) + penalty / 2 * float((weights**2).sum())
        return loss, np.concatenate([(x.T @ error + penalty * weights).ravel(), error.sum(0)])

    found = minimize(objective, np.zeros((x.shape[1] + 1) * classes), jac=True, method="L-BFGS-B",
                     options={"maxiter": 200})  # fmt: skip
    counts = np.bincount(y, minlength=classes) + 1.0
    weights, bias = found.x[:-classes].reshape(-1, classes), found.x[-classes:]
    return Probe(mean, scale, weights, bias, counts / counts.sum())


def choose_penalty(
    features_nd: ArrayLike,
    labels_n: ArrayLike,
    groups_n: ArrayLike,
    classes: int,
    candidates: Sequence[float] = PENALTIES,
) -> tuple[float, float]:
    """The penalty that does best on held-out groups (every third one), and its log-likelihood there, nats an item."""
    x, y, groups = np.asarray(features_nd), np.asarray(labels_n), np.asarray(groups_n)
    held = np.isin(groups, np.unique(groups)[::3])
    assert held.any()
    assert not held.all(), "one group cannot be both fitted and held out"

    def score(penalty: float) -> float:
        log_p = fit_probe(x[~held], y[~held], classes, penalty).log_probabilities(x[held])
        return float(log_p[np.arange(len(log_p)), y[held]].mean())

    scores = {penalty: score(penalty) for penalty in candidates}
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


def usable_information(probe: Probe, features_nd: ArrayLike, labels_n: ArrayLike) -> Floats:
    """Pointwise V-information of each item ``[n]``, nats: ln p(y | x) - ln p(y).

    Its mean is what a linear reader can use; it is negative where the probe overfits. Source  Xu et al., ICLR 2020.
    """
    y = np.asarray(labels_n)
    log_p = probe.log_probabilities(features_nd)
    return np.asarray(log_p[np.arange(len(y)), y] - np.log(probe.prior[y]))


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
