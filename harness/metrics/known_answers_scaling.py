"""Known answers of SCALING: planted laws are found, their absence is noticed, too few sizes are refused."""

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import scaling
from harness.metrics.expect import expect, expect_between
from harness.metrics.scaling import FloatArray, Runs
from harness.metrics.trend import UnderpoweredError

PLANTED = {"E": 1.8, "A": 60.0, "a": 0.28, "B": 410.0, "b": 0.42}
HELD_OUT = (3.5e6, 512e3)


def planted_loss(sizes: FloatArray, tokens: FloatArray) -> FloatArray:
    """The planted law: nats a token."""
    loss: FloatArray = PLANTED["E"] + PLANTED["A"] * sizes ** -PLANTED["a"] + PLANTED["B"] * tokens ** -PLANTED["b"]
    return loss


def planted_runs(noise: float = 0.0, *, seed: int = 0, sizes: tuple[float, ...] = (1.2e6, 1.6e6, 2.1e6, 2.7e6)) -> Runs:
    """Runs of the planted law at three lengths, with independent noise in nats."""
    grid = np.array([(size, tokens) for size in sizes for tokens in (128e3, 256e3, 512e3)])
    loss = planted_loss(grid[:, 0], grid[:, 1])
    return Runs.of(grid[:, 0], grid[:, 1], loss + noise * np.random.default_rng(seed).standard_normal(len(loss)))


@known_answer("SCALING")
def a_planted_law_is_recovered() -> None:
    """Without noise: all five coefficients, and the loss of a size never seen."""
    found = scaling.fit(planted_runs(), seed=0, starts=16, refits=2)
    for name, value in found.law.coefficients.items():
        expect(f"{name} over its true value", value / PLANTED[name], 1.0, 1e-3)
    truth = float(planted_loss(*map(np.array, HELD_OUT)))
    expect("relative error at the held-out size", found.law.loss(*HELD_OUT) / truth - 1, 0.0, 1e-6)
    expect("R^2", found.r_squared, 1.0, 1e-9)


@known_answer("SCALING")
def intervals_hold_what_is_true() -> None:
    """Noise of .01 nat: the interval of the prediction and of the exponent hold the truth and exclude what is not."""
    found = scaling.fit(planted_runs(0.01, seed=1), seed=0, starts=8, refits=20)
    predicted, exponent = found.predict(*HELD_OUT, seed=0), found.exponent()
    truth = float(planted_loss(*map(np.array, HELD_OUT)))
    expect_between("true loss in its interval", truth, predicted.low, predicted.high)
    expect_between("width of the interval, nats", predicted.high - predicted.low, 0.01, 0.1)
    expect_between("low end of the exponent", exponent.low, 0.01, PLANTED["a"])


@known_answer("SCALING")
def a_size_that_does_not_matter_has_no_exponent() -> None:
    """Negative control: losses that depend on the data alone do not exclude an exponent of 0, nor fall with size."""
    plain = planted_runs(0.01, seed=2)
    same = Runs.of(plain.sizes, plain.tokens, planted_runs(0.01, seed=3, sizes=(2e6,) * 4).losses)
    found = scaling.fit(same, seed=0, starts=8, refits=20)
    expect("the interval of a lies above 0", float(found.exponent().low > 0), 0.0)
    expect("losses fall with size at every length", float(scaling.falls(same).monotone), 0.0)
    expect("planted losses do", float(scaling.falls(planted_runs()).monotone), 1.0)
    backwards = Runs.of(1e13 / plain.sizes, plain.tokens, plain.losses)
    expect("planted losses of sizes upside down do", float(scaling.falls(backwards).monotone), 0.0)
    worse = scaling.fit(backwards, seed=0, starts=8, refits=20).exponent()
    expect_between("high end of the exponent where larger is worse", worse.high, -np.inf, -0.01)


@known_answer("SCALING")
def a_power_law_without_floor_mispredicts() -> None:
    """Negative control: ln L over ln N without E, from 3.5M to 30M, is 7 % off at 1 billion, where the law is exact."""
    sizes = np.array([3.5e6, 8e6, 16e6, 30e6])
    losses = 1.7 + 410 * sizes**-0.34
    slope, level = np.polyfit(np.log(sizes), np.log(losses), 1)
    pure = np.exp(level + slope * np.log(125e6))
    expect("relative error of a pure power law", float(pure / (1.7 + 410 * 125e6**-0.34) - 1), -0.07, 0.02)


@known_answer("SCALING")
def too_few_sizes_are_refused() -> None:
    """Three sizes fix nothing; the naive predictions are what they say."""
    refused = False
    try:
        scaling.fit(planted_runs(sizes=(1.2e6, 1.6e6, 2.1e6)), seed=0)
    except UnderpoweredError:
        refused = True
    expect("three sizes refused", float(refused), 1.0)
    runs = planted_runs()
    largest = float(planted_loss(np.array(2.7e6), np.array(512e3)))
    expect("persistence", scaling.persistence(runs, 512e3), largest, 1e-12)
    line = Runs.of(runs.sizes, runs.tokens, 20 - np.log(runs.sizes))
    expect("log-linear", scaling.log_linear(line, 3.5e6, 512e3), 20 - float(np.log(3.5e6)), 1e-9)
