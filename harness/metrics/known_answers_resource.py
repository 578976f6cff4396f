"""Known answers of RESOURCE: planted costs of memory and time are recovered and extrapolated."""

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.metrics.resource import Forecast, Size, predict_memory, predict_speed, prediction_error

TOKENS = 512
# (width, depth): depth and width do not grow together, as in the ladders of the registry
SHAPES = ((64, 2), (64, 5), (96, 3), (96, 5))
TARGET = (128, 4)


def size(width: int, depth: int) -> Size:
    """A made-up model of that shape: an embedding of 16,384 rows, and layers of 12 D^2."""
    parameters = 16_384 * width + 12 * depth * width**2
    return Size(parameters, 16 * parameters, 4096 * depth, 4 * 50 * TOKENS * width * depth, 90 * depth,
                6.0 * parameters, TOKENS)  # fmt: skip


def planted_memory(of: Size) -> float:
    """Peak bytes: 200 MB for the loss and the libraries, and 1.3 times what is kept."""
    return 2e8 + of.fixed_bytes + of.state_bytes + 1.3 * of.saved_bytes


def planted_speed(of: Size) -> float:
    """Tokens a second: 20 ms a step, .1 ms a launch, 2 ns a byte, and 200 GFLOP/s."""
    return of.tokens / (0.02 + 1e-4 * of.launches + 2e-9 * of.saved_bytes + of.flops_per_token * of.tokens / 2e11)


def _ladder() -> list[Size]:
    return [size(*shape) for shape in SHAPES]


@known_answer("RESOURCE")
def planted_costs_are_recovered() -> None:
    """Without noise the fit is exact at another shape, and its interval has no width."""
    ladder, target = _ladder(), size(*TARGET)
    memory = predict_memory(ladder, [planted_memory(s) for s in ladder], target)
    expect("ln of predicted over planted memory", math.log(memory.value / planted_memory(target)), 0.0, 1e-9)
    expect("bytes a byte that autograd keeps", memory.coefficients["bytes a byte that autograd keeps"], 1.3, 1e-9)
    speed = predict_speed(ladder, [planted_speed(s) for s in ladder], target)
    expect("ln of predicted over planted speed", math.log(speed.value / planted_speed(target)), 0.0, 1e-6)
    expect("seconds a launch", speed.coefficients["s a launch"], 1e-4, 1e-8)


@known_answer("RESOURCE")
def a_wrong_structure_is_off() -> None:
    """Negative control: bytes a parameter alone, as is often said, miss what a deeper model keeps."""
    ladder, target = _ladder(), size(*TARGET)
    measured = [planted_memory(s) for s in ladder]
    blind = [replace(s, saved_bytes=0) for s in ladder]
    without = predict_memory(blind, measured, replace(target, saved_bytes=0))
    expect_between("error without activations", abs(math.log(without.value / planted_memory(target))), 0.05, 1.0)
    expect_between("width of its interval", _width(without), 0.1, 2.0)
    # and a size that costs 1.6 times what the smaller ones promise is off by just that
    honest = predict_memory(ladder, measured, target)
    expect(
        "error of what costs 1.6 times as much",
        prediction_error(1.6 * planted_memory(target), honest.value, 1.0, 1.0),
        math.log(1.6),
        1e-9,
    )


@known_answer("RESOURCE")
def the_error_is_the_worse_of_both_in_either_direction() -> None:
    """Half the memory is as far off as twice; the better of the two does not help."""
    expect("twice the memory", prediction_error(2.0, 1.0, 1.0, 1.0), math.log(2), 1e-12)
    expect("half the memory", prediction_error(0.5, 1.0, 1.0, 1.0), math.log(2), 1e-12)
    expect("a third of the speed", prediction_error(2.0, 1.0, 1.0, 3.0), math.log(3), 1e-12)
    expect("as predicted", prediction_error(2.0, 2.0, 3.0, 3.0), 0.0)


@known_answer("RESOURCE")
def noise_widens_the_interval() -> None:
    """Measurements 5 % off in turns are predicted within 20 %, and the interval says that it is not sure."""
    ladder, target = _ladder(), size(*TARGET)
    noisy = _off(ladder, 0.05)
    speed = predict_speed(ladder, noisy, target)
    expect_between("error under noise", abs(math.log(speed.value / planted_speed(target))), 0.0, 0.2)
    expect_between("width of the interval", _width(speed), 0.1, 3.0)


def _off(ladder: Sequence[Size], by: float) -> list[float]:
    return [planted_speed(s) * math.exp(by if index % 2 else -by) for index, s in enumerate(ladder)]


def _width(forecast: Forecast) -> float:
    return math.log(forecast.high / forecast.low)
