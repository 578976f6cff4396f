"""Known answers of G3: the trend of a loss and the gradient norms."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import gradients, trend
from harness.metrics.expect import expect, expect_between

STEPS = np.arange(101, 1101)


def ar1(rng: np.random.Generator, runs: int, steps: int, phi: float) -> NDArray[np.float64]:
    """Stationary AR(1) noise of unit variance, ``[runs, steps]``: no trend, and a memory of -1 / ln phi steps."""
    kernel = phi ** np.arange(1 if phi == 0 else math.ceil(-30 / math.log(phi)))
    noise = rng.standard_normal((runs, steps + len(kernel) - 1)) * math.sqrt(1 - phi**2)
    return np.stack([np.convolve(row, kernel, mode="valid") for row in noise])


@known_answer("G3")
def a_falling_series_falls() -> None:
    """Ten falling values: S = -45, variance 125, z = -44 / sqrt(125). Rising ones are the negative control."""
    falling = np.arange(10.0)[::-1]
    p_value = NormalDist().cdf(-44 / math.sqrt(125))
    expect("p of ten falling values", trend.mann_kendall(falling), p_value, 1e-12)
    expect("p of ten rising values", trend.mann_kendall(falling[::-1]), 1 - p_value, 1e-12)
    expect("p of a constant", trend.mann_kendall(np.ones(10)), 1.0)
    slope, low, high = trend.theil_sen(np.arange(10.0), falling)
    expect("slope of a straight line", slope, -1.0, 1e-12)
    expect("width of its interval", high - low, 0.0, 1e-12)


@known_answer("G3")
def an_injected_slope_is_recovered() -> None:
    """Recover a fall of .3 nat per e-fold under noise of .15 nat that remembers two steps."""
    losses = 6 - 0.3 * np.log(STEPS) + 0.15 * ar1(np.random.default_rng(5), 1, len(STEPS), 0.6)[0]
    result = trend.loss_trend(STEPS, losses)
    expect("slope", result.slope, -0.3, 0.05)
    expect_between("injected slope against the interval", -0.3, *result.slope_ci)
    expect_between("p of a falling loss", result.p_value, 0, 0.001)
    rising = trend.loss_trend(STEPS, 12 - losses)
    expect_between("p of a rising loss", rising.p_value, 0.999, 1)


@known_answer("G3")
def memory_is_not_a_trend() -> None:
    """Trendless AR(1) noise of phi = .9 is rarely called a fall; the test without blocks calls it one often."""
    series = ar1(np.random.default_rng(6), 20, len(STEPS), 0.9)
    called = sum(trend.loss_trend(STEPS, row).p_value < 0.05 for row in series)
    expect_between("false alarms in 20, with blocks", called, 0, 4)
    naive = sum(trend.mann_kendall(row[:200]) < 0.05 for row in series)
    expect_between("false alarms in 20, without blocks (negative control)", naive, 5, 20)


@known_answer("G3")
def the_memory_of_noise_is_measured() -> None:
    """Tau of AR(1) noise is 1/2 + phi / (1 - phi); noise too persistent for its length is refused."""
    for phi, length in ((0.0, 20_000), (0.9, 40_000)):
        noise = ar1(np.random.default_rng(7), 1, length, phi)[0]
        tau = 0.5 + phi / (1 - phi)
        expect(f"tau at phi = {phi:g}", trend.autocorrelation_time(noise), tau, 0.15 * tau)
    slow = ar1(np.random.default_rng(8), 1, 150, 0.95)[0]
    try:
        result = trend.loss_trend(np.arange(1, 151), slow)
    except trend.UnderpoweredError:
        return
    raise AssertionError(
        f"150 steps of noise that remembers 20 were judged on {result.blocks} blocks; they allow no verdict"
    )


@known_answer("G3")
def a_bend_of_the_schedule_is_no_memory() -> None:
    """White noise on a curve that bends where the learning rate falls has no memory; one parabola sees some."""
    steps = np.arange(101, 5001)
    curve = 3.4 + 9 * steps**-0.5 - 0.25 * np.maximum((steps - 4000) / 1000, 0) ** 0.7
    losses = curve + 0.055 * np.random.default_rng(9).standard_normal(len(steps))
    expect_between("tau by phases", trend.noise_memory(steps, losses, decay_from=4001), 0.5, 1)
    expect_between("tau by one parabola (negative control)", trend.noise_memory(steps, losses), 20, math.inf)
    expect("blocks", trend.loss_trend(steps, losses, decay_from=4001).blocks, trend.MAX_BLOCKS)
    slow = 0.055 * ar1(np.random.default_rng(10), 1, len(steps), 0.9)[0]
    expect("tau of noise at phi = .9", trend.noise_memory(steps, curve + slow, decay_from=4001), 9.5, 3)


@known_answer("G3")
def gradient_norms_are_summarised() -> None:
    """Medians ignore an explosion, the tail shows it, and NaN does not pass for a number."""
    norms = np.concatenate([np.full(50, 99.0), np.full(200, 2.0)])
    calm = gradients.gradient_summary(norms, clip=1.0)
    expect("median of the last 200", calm.median, 2.0)
    expect("tail of constant norms", calm.p99_over_median, 1.0)
    expect("share of clipped steps", calm.clip_fraction, 1.0)
    norms[-4:] = 200.0
    expect("tail with four explosions", gradients.gradient_summary(norms, clip=10.0).p99_over_median, 100.0)
    norms[-1] = math.nan
    expect("median with a NaN", gradients.gradient_summary(norms, clip=1.0).median, math.nan)
