"""Known answers of STABILITY: planted spikes, a planted rise, numbers that are none, known deviations."""

import math

import numpy as np

from harness import stability
from harness.known_answers import known_answer
from harness.known_answers_stop import PLANTED_LIMITS, Row
from harness.metrics.expect import expect, expect_between

PHI, NOISE_NATS = 0.3, 0.15


def noisy_rows(seed: int, steps: int = 400) -> list[Row]:
    """Step rows of a training at rest: 6 nats under AR(1) noise of the size that a 3.5M model shows."""
    shocks = np.random.default_rng(seed).standard_normal(steps) * NOISE_NATS * math.sqrt(1 - PHI**2)
    rows: list[Row] = []
    noise = 0.0
    for step, shock in enumerate(shocks.tolist(), start=1):
        noise = PHI * noise + shock
        rows.append({"kind": "step", "step": step, "loss": 6 + noise, "grad_norm": 1.0, "clipped": step % 4 == 0})
    return rows


@known_answer("STABILITY")
def planted_spikes_are_counted_exactly() -> None:
    """Steps in a row are one spike; one that stays is unrecovered; noise alone is none (negative control)."""
    rows = noisy_rows(seed=70, steps=700)
    quiet = stability.find_spikes(rows, PLANTED_LIMITS)
    assert quiet.first_steps == (), f"noise at rest showed spikes at {quiet.first_steps}"
    for step in (150, 200, 201, 202, 300):
        rows[step - 1]["loss"] += 3.0
    found = stability.find_spikes(rows, PLANTED_LIMITS)
    assert found.first_steps == (150, 200, 300), f"planted at 150, 200 to 202 and 300, found {found.first_steps}"
    expect("unrecovered", found.unrecovered, 0)
    expect("spikes in 1000 steps", found.per_1000, 3000 / 700, 1e-12)
    for row in rows[449:]:
        row["loss"] += 3.0
    stayed = stability.find_spikes(rows, PLANTED_LIMITS)
    assert stayed.first_steps == (150, 200, 300, 450), f"the last one stays from 450, found {stayed.first_steps}"
    expect("unrecovered after 200 steps", stayed.unrecovered, 1)
    ended = stability.find_spikes(rows[:460], PLANTED_LIMITS)
    expect("unrecovered when the log ends", ended.unrecovered, 1)


@known_answer("STABILITY")
def noise_is_no_spike() -> None:
    """Ten trainings at rest, 4000 steps in all: not one spike."""
    counts = [len(stability.find_spikes(noisy_rows(seed), PLANTED_LIMITS).first_steps) for seed in range(80, 90)]
    expect("trainings at rest with a spike", sum(count > 0 for count in counts), 0)


@known_answer("STABILITY")
def a_planted_rise_is_the_divergence() -> None:
    """A rise of .7 nats that stays reads .7; a falling loss 0; one odd evaluation a third; NaN is infinite."""
    falling = [9.7, 8.0, 7.0, 6.5, 6.3, 6.2, 6.15, 6.1]
    expect("a loss that falls", stability.divergence(falling), 0.0)
    rest = [9.7, 8.0, 6.0, 6.0, 6.0]
    expect("a rise that stays", stability.divergence([*rest, 6.7, 6.7, 6.7]), 0.7, 1e-12)
    expect("one odd evaluation at the end", stability.divergence([*rest, 6.3]), 0.1, 1e-12)
    expect("a loss that is no number", stability.divergence([*rest, math.nan, 6.0]), math.inf)


@known_answer("STABILITY")
def what_is_no_number_is_counted() -> None:
    """Two steps and one evaluation; what may be infinite in a healthy log is not counted (negative control)."""
    rows = noisy_rows(seed=71, steps=150)
    rows.append({"kind": "eval", "step": 150, "val_loss": 6.0, "val_se": math.inf, "documents": [0]})
    expect("in a sound log", stability.count_non_finite(rows, None), 0)
    rows[10]["loss"], rows[20]["grad_norm"], rows[-1]["val_loss"] = math.nan, math.inf, math.nan
    expect("planted", stability.count_non_finite(rows, None), 3)


@known_answer("STABILITY")
def shares_and_deviations_of_known_numbers() -> None:
    """Every fourth step clipped; SD of 1, 2, 3 is 1 with the interval of chi-square; equal seeds have none."""
    rows = noisy_rows(seed=72, steps=200)
    expect("clipped after the warm-up", stability.clip_fraction(rows, 100), 0.25)
    expect("clipped where no step is left", stability.clip_fraction(rows, 200), math.nan)
    deviation, (low, high) = stability.seed_deviation([1.0, 2.0, 3.0])
    expect("deviation of 1, 2, 3", deviation, 1.0)
    # with two degrees of freedom the upper tail of chi-square is exp(-x / 2)
    expect("its lower end", low, math.sqrt(2 / (-2 * math.log(0.05))), 1e-9)
    expect("its upper end", high, math.sqrt(2 / (-2 * math.log(0.95))), 1e-9)
    expect("deviation of equal losses", stability.seed_deviation([6.1, 6.1])[0], 0.0)
    expect_between("of a lucky seed", stability.seed_deviation([6.1, 6.1, 6.4])[0], 0.17, 0.18)
