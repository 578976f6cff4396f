"""Known answers of D1: sizes under known decays, growth exponents, variation; the same along a training."""

import math

import numpy as np
import torch

from harness.known_answers import known_answer
from harness.metrics import growth
from harness.metrics.expect import expect, expect_between

POSITIONS = (64, 91, 128, 181, 256)


@known_answer("D1")
def sizes_under_a_constant_decay_have_a_closed_form() -> None:
    """Independent writes under w: N(t)^2 = (1 - w^2t) / (1 - w^2). All alike: N(t) = (1 - w^t) / (1 - w)."""
    decay, texts, steps = 0.9, 64, 32
    writes = torch.randn(steps, texts, 1, 8, 8, generator=torch.Generator().manual_seed(21), dtype=torch.float64)
    state = torch.zeros(texts, 1, 8, 8, dtype=torch.float64)
    energies = []
    for write in writes:
        state = decay * state + write
        energies.append(growth.head_energy(state)[:, 0])
    ratio = growth.size_ratio(energies[-1], energies[3], np.arange(texts), seed=0).value
    closed = math.sqrt((1 - decay ** (2 * steps)) / (1 - decay**8))
    expect("N(32) / N(4) at w = .9", ratio, closed, 0.02)
    alike = growth.coherent_sizes(torch.full((1, 64, 1, 3), decay, dtype=torch.float64), [1, 64])[0, :, 0].tolist()
    expect("size of one coherent write", alike[0], 1.0, 1e-12)
    expect("size of 64 coherent writes at w = .9", alike[1], (1 - decay**64) / (1 - decay), 1e-12)


@known_answer("D1")
def exponents_tell_growth_apart() -> None:
    """Settled 0, undecayed independent writes 1/2, undecayed writes all alike 1; an e-fold of lambda t is flagged."""
    t = np.array(POSITIONS, np.float64)
    expect("exponent of a settled state", float(growth.growth_exponent(POSITIONS, np.full(5, 3e4))), 0.0, 1e-12)
    expect("exponent of sqrt(t)", float(growth.growth_exponent(POSITIONS, np.sqrt(t))), 0.5, 1e-12)
    kept = growth.coherent_sizes(torch.ones(1, 256, 1), POSITIONS)[0, :, 0]
    null = float(growth.growth_exponent(POSITIONS, kept))
    expect("exponent of the null at w = 1", null, 1.0, 1e-12)
    # negative control: a growing mode must not pass, and a decay above 1 must not excuse it
    exploding = float(growth.growth_exponent(POSITIONS, np.exp(0.02 * t)))
    expect_between("excess of e^(.02 t)", exploding - null, 0.5, 10.0)
    excuse = growth.coherent_sizes(torch.full((1, 256, 1), 1.02), POSITIONS)[0, :, 0]
    expect("null under a decay of 1.02", float(growth.growth_exponent(POSITIONS, excuse)), 1.0, 1e-12)
    broken = growth.growth_exponent(POSITIONS, [1.0, 2.0, math.inf, 3.0, 4.0])
    expect("exponent of an infinite size", float(broken), math.nan)


@known_answer("D1")
def a_long_memory_is_no_divergence() -> None:
    """Pitfall: w = .9975 with writes all alike grows as t^.8 from 64 to 256 by itself; the null says so."""
    sizes = growth.coherent_sizes(torch.full((1, 256, 1), 0.9975), POSITIONS)[0, :, 0]
    exponent = float(growth.growth_exponent(POSITIONS, sizes))
    expect_between("exponent of a healthy head of a long memory", exponent, 0.7, 0.9)
    tau = float(growth.slowest_timescale(torch.tensor([[math.log(0.5), math.log(0.9975)]], dtype=torch.float64)))
    expect("its slowest timescale", tau, -1 / math.log(0.9975), 1e-9)
    expect("timescale of a decay of 1", float(growth.slowest_timescale(torch.zeros(1))), math.inf)


@known_answer("D1")
def variation_of_a_ramp() -> None:
    """Constant 0; a ramp from 1 to 1 + r: (r / sqrt 12) / (1 + r/2)."""
    expect("variation of a constant", growth.variation(np.full(9, 7.0)), 0.0)
    ramp = growth.variation(np.linspace(1, 1.5, 10001))
    expect("variation of a ramp to 1.5", ramp, (0.5 / math.sqrt(12)) / 1.25, 1e-4)
    expect(
        "variation of a ramp of 1000 times the size", growth.variation(1000 * np.linspace(1, 1.5, 10001)), ramp, 1e-9
    )
    expect("variation of three values", growth.variation([1, 2, 3]), math.nan)
    expect("variation with an infinity", growth.variation([1, 2, 3, math.inf]), math.nan)
