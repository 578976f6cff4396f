"""Known answers of D1 and D2 along a training: growth, variation and lost sensitivity read off probe rows."""

import math
from collections.abc import Callable
from typing import Any

from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.step_growth import LayerSteps, layer_steps

STEPS = range(50, 1001, 50)


def _log(rms: Callable[[int], float], rho: Callable[[int], float]) -> list[dict[str, Any]]:
    """Probe rows of a model of two layers, the second without this branch; head 0 keeps its size."""
    return [
        {
            "step": step,
            "state_rms": {"rwkv": [[1.0, rms(step), rms(step)], None]},
            "state_rho": {"rwkv": [rho(step), None]},
        }
        for step in STEPS
    ]


def _only(rows: list[dict[str, Any]]) -> LayerSteps:
    [layer] = layer_steps(rows, 50)
    return layer


@known_answer("D1")
def growth_is_counted_from_half_of_the_training() -> None:
    """A state that grows by 20 and settles passes; one that grows as step^4 reads 16; NaN is never hidden."""
    settles = _only(_log(lambda step: 20 * min(step / 400, 1.0), lambda _: 0.5))
    expect("growth since the warm-up", max(settles.growth(settles.warmed)), 8.0, 1e-9)
    expect("growth since half of the training", settles.late_growth[0], 1.0, 1e-12)
    creeps = _only(_log(lambda step: float(step) ** 4, lambda _: 0.5))
    growth, head = creeps.late_growth
    expect("growth of a state that creeps (negative control)", growth, 16.0, 1e-9)
    expect("its head", head, 1)
    broken = _only(_log(lambda step: math.nan if step == STEPS[-1] else 1.0, lambda _: 0.5))
    expect("growth to a size that is NaN", broken.late_growth[0], math.nan)


@known_answer("D1")
def variation_is_of_the_median_head() -> None:
    """Two of three heads ramp by a half over the last fifth: the median head shows it, five points of a ramp."""
    ramp = _only(_log(lambda step: 1 + 0.5 * max(step - 800, 0) / 200, lambda _: 0.5))
    found = ramp.late_variation
    assert found is not None
    # population deviation of five evenly spaced points: r sqrt(2) / 4
    expect("variation of a ramp to 1.5", found[0], 0.5 * math.sqrt(2) / 4 / 1.25, 1e-9)
    still = _only(_log(lambda _: 3.0, lambda _: 0.5)).late_variation
    expect("variation of a constant", math.nan if still is None else still[1], 0.0)
    expect("readings with three probes at the end", len(layer_steps(_log(lambda _: 1.0, lambda _: 1.0)[-3:], 1001)), 0)


@known_answer("D2")
def lost_sensitivity_shows() -> None:
    """A tenth of what it was at the end of the warm-up reads .1; a plateau is no loss."""
    lost = _only(_log(lambda _: 1.0, lambda step: 0.5 if step < 600 else 0.05))
    expect("kept of .5 that became .05", lost.kept_sensitivity, 0.1, 1e-12)
    expect_between("its trend", lost.sensitivity_trend or 0.0, -1.0, -0.05)
    plateau = _only(_log(lambda _: 1.0, lambda _: 0.5))
    expect("kept by a plateau", plateau.kept_sensitivity, 1.0, 1e-12)
    never = _only(_log(lambda _: 1.0, lambda _: 0.0))
    expect("kept of nothing", never.kept_sensitivity, math.nan)
