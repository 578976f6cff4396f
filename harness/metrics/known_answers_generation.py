"""Known answers of drawing tokens and of the diversity of what was drawn."""

import math

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import diversity, sampling
from harness.metrics.expect import expect

SHARES = np.array([0.1, 0.5, 0.15, 0.25])
DRAWS = (np.arange(1000) + 0.5) / 1000


def drawn(shares: "np.ndarray[tuple[int], np.dtype[np.float64]]", temperature: float, top_p: float) -> list[float]:
    """How often each token is drawn with a thousand even draws."""
    rows = np.tile(np.log(shares), (len(DRAWS), 1))
    tokens = sampling.choose(rows, DRAWS, temperature=temperature, top_p=top_p)
    return [float(count) for count in np.bincount(tokens, minlength=len(shares)) / len(DRAWS)]


@known_answer("CODE", "SAMPLES")
def tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """.1, .5, .15, .25 as they are; squared at temperature 1/2; without the least at top-p .9; the best alone at 0."""
    squared = SHARES**2 / (SHARES**2).sum()
    nucleus = np.where(SHARES == 0.1, 0, SHARES) / 0.9
    for name, temperature, top_p, want, tolerance in (
        ("temperature 1", 1.0, 1.0, SHARES, 0.001),
        ("temperature 1/2", 0.5, 1.0, squared, 0.001),
        ("top-p .9", 1.0, 0.9, nucleus, 0.001),
        ("top-p of the best alone", 1.0, 0.5, np.array([0.0, 1, 0, 0]), 0.0),
        ("temperature 0", 0.0, 1.0, np.array([0.0, 1, 0, 0]), 0.0),
    ):
        for token, (found, expected) in enumerate(zip(drawn(SHARES, temperature, top_p), want, strict=True)):
            expect(f"share of token {token} at {name}", found, float(expected), tolerance)
    # negative control: what has no probability is never drawn
    expect("share of an impossible token", drawn(np.array([0.5, 1e-300, 0.25, 0.25]), 1.0, 1.0)[1], 0.0)


@known_answer("SAMPLES")
def repetition_is_counted() -> None:
    """Of a b a b a b 2 of 6 words, 2 of 5 pairs, one of three fours is new after two; all different: 1, 1, 0."""
    loop = [1, 2, 1, 2, 1, 2]
    expect("distinct-1 of a loop", diversity.distinct([loop], 1), 2 / 6, 1e-12)
    expect("distinct-2 of a loop", diversity.distinct([loop], 2), 2 / 5, 1e-12)
    expect("repetition of a loop", diversity.repetition([loop]), 1 / 3, 1e-12)
    fresh = list(range(10))
    expect("distinct-2 of new words", diversity.distinct([fresh], 2), 1.0)
    expect("repetition of new words (negative control)", diversity.repetition([fresh]), 0.0)
    # twice the same text is no repetition within a text, and half of it is not distinct
    expect("distinct-1 of the same text twice", diversity.distinct([fresh, fresh], 1), 0.5)
    expect("repetition of the same text twice", diversity.repetition([fresh, fresh]), 0.0)
    expect("repetition of too short a text", diversity.repetition([[1, 2]]), math.nan)
