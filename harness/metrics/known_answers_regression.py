"""Known answers of LR-PROBE: a planted curvature is found, a straight line has none, two settings are refused."""

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import regression
from harness.metrics.expect import expect, expect_between
from harness.metrics.trend import UnderpoweredError

KNOBS, SEEDS = (0.25, 0.5, 1.0, 2.0, 4.0), 3
DRAWS = 300


def _planted(slope: float, curvature: float, noise: float, rng: np.random.Generator) -> regression.Response:
    """Three seeds, far apart in level, over five settings."""
    knob = np.tile(KNOBS, SEEDS)
    seeds = np.repeat(np.arange(SEEDS), len(KNOBS))
    x = np.log2(knob)
    y = 5.0 * seeds + slope * x + curvature * x**2 + noise * rng.standard_normal(len(x))
    return regression.response(knob, y, seeds)


def _share(held: list[bool]) -> float:
    return sum(held) / len(held)


@known_answer("LR-PROBE", "PARETO")
def a_planted_curvature_is_found() -> None:
    """Coefficients are recovered to rounding without noise; with noise the interval covers as often as it says."""
    exact = _planted(-0.3, 0.05, 0.0, np.random.default_rng(1))
    expect("slope", exact.slope.value, -0.3, 1e-9)
    expect("curvature", exact.curvature.value, 0.05, 1e-9)
    rng = np.random.default_rng(2)
    found = [_planted(-0.3, 0.05, 0.02, rng) for _ in range(DRAWS)]
    covered = _share([fit.curvature.low <= 0.05 <= fit.curvature.high for fit in found])
    expect_between("share of 90 % intervals that hold the planted curvature", covered, 0.85, 0.95)
    expect_between("share in which AICc prefers the parabola", _share([fit.aicc_gain > 0 for fit in found]), 0.95, 1.0)


@known_answer("LR-PROBE", "PARETO")
def a_straight_line_is_not_called_curved() -> None:
    """Negative control: no curvature planted, 90 % of the intervals hold 0 and AICc rarely takes the parabola."""
    rng = np.random.default_rng(3)
    found = [_planted(-0.3, 0.0, 0.02, rng) for _ in range(DRAWS)]
    holding = _share([fit.curvature.low <= 0 <= fit.curvature.high for fit in found])
    expect_between("share of 90 % intervals that hold 0", holding, 0.85, 0.95)
    expect_between("share in which AICc prefers the parabola", _share([fit.aicc_gain > 0 for fit in found]), 0.0, 0.1)
    flat = [_planted(0.0, 0.0, 0.02, rng) for _ in range(DRAWS)]
    rising = _share([not fit.slope.low <= 0 <= fit.slope.high for fit in flat])
    expect_between("share of flat responses with a slope apart from 0", rising, 0.05, 0.15)


@known_answer("LR-PROBE", "PARETO")
def two_settings_are_refused() -> None:
    """Two learning rates lie on a line whatever is true; one more is enough to be asked."""
    knob, seeds = np.tile(KNOBS[:2], 3 * SEEDS), np.repeat(np.arange(3 * SEEDS), 2)
    refused = 0
    try:
        regression.response(knob, np.arange(18.0), seeds)
    except UnderpoweredError:
        refused = 1
    expect("two settings refused", refused, 1)
    three = regression.response(np.tile(KNOBS[:3], SEEDS), np.arange(9.0) ** 2, np.repeat(np.arange(SEEDS), 3))
    expect("three settings", three.places, 3)
