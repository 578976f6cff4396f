"""Known answers of TOKENISATION: planted effects, a null that is called rarely enough, and 8 bits for uniform bytes."""

import math

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import anova, text
from harness.metrics.expect import expect, expect_between
from harness.metrics.trend import UnderpoweredError

SEEDS, DRAWS = 3, 400


def _cells(first: float, second: float, both: float, noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    i, j = np.indices((2, 2))
    means_ij: NDArray[np.float64] = 1.0 + first * i + second * j + both * i * j
    return means_ij[:, :, None] + noise * rng.standard_normal((2, 2, SEEDS))


@known_answer("TOKENISATION")
def planted_effects_are_told_apart() -> None:
    """Main effects and the interaction come back to rounding, each on its own contrast."""
    shifts = np.array([-0.1, 0.0, 0.1])
    found = anova.two_by_two(_cells(2.0, -1.0, 0.0, 0.0, np.random.default_rng(1)) + shifts)
    expect("first factor", found.first.difference.value, 2.0, 1e-12)
    expect("second factor", found.second.difference.value, -1.0, 1e-12)
    expect("interaction", found.interaction.difference.value, 0.0, 1e-12)
    expect("F of the interaction", found.interaction.f, 0.0, 1e-12)
    expect("p of the interaction", found.interaction.p_value, 1.0, 1e-6)
    # by hand: 12 values, half of them 2 higher: sum of squares 12, noise .01
    expect("F of the first factor", found.first.f, 12 / 0.01, 1e-6)
    crossed = anova.two_by_two(_cells(0.0, 0.0, 1.0, 0.0, np.random.default_rng(1)) + shifts)
    expect("planted interaction", crossed.interaction.difference.value, 1.0, 1e-12)
    expect("first factor beside it: half of it", crossed.first.difference.value, 0.5, 1e-12)


@known_answer("TOKENISATION")
def noise_alone_is_called_an_effect_one_time_in_twenty() -> None:
    """Negative control: nothing planted; each p lies below .05 in 5 % of the draws, and intervals hold 0 in 90 %."""
    rng = np.random.default_rng(2)
    found = [anova.two_by_two(_cells(0, 0, 0, 1.0, rng)) for _ in range(DRAWS)]
    for name in ("first", "second", "interaction"):
        effects = [getattr(analysis, name) for analysis in found]
        expect_between(f"{name}: p below .05", float(np.mean([e.p_value < 0.05 for e in effects])), 0.02, 0.08)
        holding = np.mean([e.difference.low <= 0 <= e.difference.high for e in effects])
        expect_between(f"{name}: interval holds 0", float(holding), 0.85, 0.95)
    refused = 0
    try:
        anova.two_by_two(np.ones((2, 2, 1)))
    except UnderpoweredError:
        refused = 1
    expect("one seed refused", refused, 1)


@known_answer("TOKENISATION")
def a_uniform_model_of_bytes_has_eight_bits() -> None:
    """A loss of ln 256 nats a byte is 8 bits, however the text is cut; a token without bytes still costs."""
    one, four = np.full(10, 1), np.full(10, 4)
    nats = np.full(10, math.log(256))
    documents = np.repeat([0, 1], 5)
    expect("bytes", text.bits_per_byte(nats, one, documents).value, 8.0, 1e-12)
    expect("tokens of four bytes", text.bits_per_byte(4 * nats, four, documents).value, 8.0, 1e-12)
    expect("the same nats over four times the bytes", text.bits_per_byte(nats, four, documents).value, 2.0, 1e-12)
    ends = np.where(np.arange(10) % 5 == 4, 0, 1)
    expect("an end of document has no bytes", text.bits_per_byte(nats, ends, documents).value, 10.0, 1e-12)
