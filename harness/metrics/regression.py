"""Is a response to a knob straight or curved? Least squares on a logarithmic knob, with an effect for every block."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, Interval
from harness.metrics.trend import UnderpoweredError

FloatArray = NDArray[np.float64]

MIN_PLACES = 3
"""Two settings of a knob lie on every parabola: nothing can be said of a curvature."""


@dataclass(frozen=True)
class Response:
    r"""How y answers to a knob m over several settings, blocks (seeds) apart.

        straight   y = a_block + b x,             x = log2 m - mean
        curved     y = a_block + b x + c x^2

    slope      b of the straight line: y a doubling of m
    curvature  c of the parabola: y a doubling squared
    aicc_gain  AICc(straight) - AICc(curved): above 0 the parabola predicts better, its price paid
    places     different settings
    """

    slope: Interval
    curvature: Interval
    aicc_gain: float
    places: int


def response(knob: ArrayLike, values: ArrayLike, blocks: ArrayLike, *, level: float = LEVEL) -> Response:
    """Fit a line and a parabola to ``values [n]`` over ``log2(knob [n])``; one intercept for each label in ``blocks``.

    Runs with one seed share their start and the order of their text; the intercepts take out what they share.
    Raises ``UnderpoweredError`` for fewer than three settings, for too few values, and for one that is not finite.
    Source  AICc: Hurvich & Tsai, Biometrika 76 (1989) 297; the knob is positive, hence the logarithm.
    """
    m_n, y_n = np.asarray(knob, dtype=np.float64), np.asarray(values, dtype=np.float64)
    labels_n = np.unique(np.asarray(blocks), return_inverse=True)[1]
    assert m_n.shape == y_n.shape == labels_n.shape
    assert bool((m_n > 0).all())
    places, num_blocks = len(np.unique(m_n)), int(labels_n.max()) + 1
    if places < MIN_PLACES:
        raise UnderpoweredError(
            f"{places} different settings: a curvature needs at least {MIN_PLACES}, as any two points lie on a line"
        )
    if not np.isfinite(y_n).all():
        raise UnderpoweredError(f"the response is {y_n[~np.isfinite(y_n)][0]} at one setting: it has no curve there")
    if len(y_n) < num_blocks + 5:
        raise UnderpoweredError(f"{len(y_n)} values for {num_blocks + 3} unknowns leave no spread; run more seeds")
    x_n = np.log2(m_n) - np.log2(m_n).mean()
    intercepts_nk = np.eye(num_blocks)[labels_n]
    straight = _Fit.of(np.column_stack([intercepts_nk, x_n]), y_n)
    curved = _Fit.of(np.column_stack([intercepts_nk, x_n, x_n**2]), y_n)
    with np.errstate(invalid="ignore"):
        gain = float(np.subtract(straight.aicc, curved.aicc))
    return Response(
        straight.last_coefficient(level, num_blocks), curved.last_coefficient(level, num_blocks), gain, places
    )


@dataclass(frozen=True)
class _Fit:
    """Ordinary least squares: coefficients ``[k]``, their covariance without the noise ``[k, k]``, residual sum."""

    coefficients: FloatArray
    inverse: FloatArray
    residual: float
    n: int

    @classmethod
    def of(cls, design_nk: FloatArray, y_n: FloatArray) -> "_Fit":
        inverse = np.linalg.inv(design_nk.T @ design_nk)
        found = inverse @ (design_nk.T @ y_n)
        return cls(
            np.asarray(found, np.float64),
            np.asarray(inverse, np.float64),
            float(((y_n - design_nk @ found) ** 2).sum()),
            len(y_n),
        )

    @property
    def aicc(self) -> float:
        """AICc = n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), k with the noise; -inf for no residual."""
        k = len(self.coefficients) + 1
        fit = self.n * math.log(self.residual / self.n) if self.residual > 0 else -math.inf
        return fit + 2 * k + 2 * k * (k + 1) / (self.n - k - 1)

    def last_coefficient(self, level: float, num_blocks: int) -> Interval:
        from scipy.special import stdtrit

        free = self.n - len(self.coefficients)
        value = float(self.coefficients[-1])
        error = math.sqrt(self.residual / free * float(self.inverse[-1, -1]))
        half = float(stdtrit(free, 0.5 + level / 2)) * error
        return Interval(value, value - half, value + half, self.n, num_blocks)
