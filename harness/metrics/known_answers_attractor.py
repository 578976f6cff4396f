"""Known answers of GATES: a planted place is found where it is, and neither wandering nor two places pass for one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import attractor
from harness.metrics.attractor import Attraction, logit
from harness.metrics.expect import expect, expect_between

FloatArray = NDArray[np.float64]

SHARES, SEEDS = (0.03, 0.3, 0.5, 0.7, 0.97), 3
STARTS = logit(SHARES)[:, None]
PLACE = 0.7
DRAWS = 150


def _found(ends_KS: FloatArray) -> Attraction:
    return attractor.attraction(SHARES, 1 / (1 + np.exp(-ends_KS)))


def _draws(seed: int, ends: Callable[[np.random.Generator, FloatArray], FloatArray]) -> list[Attraction]:
    """What is found where the logits of the ends are ``ends(rng, noise [5, 3])``, ``DRAWS`` times."""
    rng = np.random.default_rng(seed)
    return [_found(ends(rng, rng.standard_normal((len(SHARES), SEEDS)))) for _ in range(DRAWS)]


def _share(held: list[bool]) -> float:
    return sum(held) / len(held)


@known_answer("GATES")
def a_planted_place_is_found_where_it_is() -> None:
    """Line and place are recovered to rounding without noise; with noise their intervals hold them as often as said."""
    exact = _found(0.4 * STARTS + 0.6 * logit(PLACE) + 1e-9 * np.arange(SEEDS))
    expect("slope", exact.slope.value, 0.4, 1e-7)
    expect("fixed point", exact.place.value if exact.place else np.nan, PLACE, 1e-7)
    # one line of twenty is called more than a line by the three tests
    for slope, name, claimed in ((0.0, "one place", True), (0.35, "a third of the distances kept", False)):
        found = _draws(1, lambda _, noise, b=slope: b * STARTS + (1 - b) * logit(PLACE) + 0.2 * noise)  # type: ignore[misc]
        held = _share([fit.slope.low <= slope <= fit.slope.high for fit in found])
        expect_between(f"share of 90 % intervals that hold the slope of {name}", held, 0.83, 0.97)
        places = [fit.place for fit in found if fit.place is not None]
        expect_between(f"share of draws of {name} with a place", len(places) / DRAWS, 0.89, 1)
        held = _share([place.low <= PLACE <= place.high for place in places])
        expect_between(f"share of 90 % intervals that hold the place of {name}", held, 0.83, 0.97)
        called = _share([fit.is_attractor for fit in found])
        expect_between(f"share in which {name} is called an attractor", called, *((0.95, 1) if claimed else (0, 0)))


@known_answer("GATES")
def gates_that_wander_have_no_place() -> None:
    """Negative control: b = 1 and noise, small or as large as the starts are apart. No end is called an attractor."""
    for scale in (0.2, 1.0, 3.0):
        found = _draws(2, lambda _, noise, sd=scale: STARTS + sd * noise)  # type: ignore[misc]
        expect(f"attractors of gates that wander by {scale}", _share([fit.is_attractor for fit in found]), 0)
        named = _share([fit.place is not None for fit in found])
        expect_between(f"share of gates that wander by {scale} to which a place is given", named, 0, 0.1)
        held = _share([fit.slope.low <= 1 <= fit.slope.high for fit in found])
        expect_between("share of 90 % intervals that hold 1", held, 0.83, 0.97)


@known_answer("GATES")
def two_places_are_not_averaged_into_one() -> None:
    """Negative control: ends at -2 and 2, parted in the middle, at the side, or by chance, are no line and no place."""
    middle = _draws(3, lambda rng, noise: 2 * np.sign(STARTS + 0.1 * rng.standard_normal(noise.shape)) + 0.2 * noise)
    side = _draws(4, lambda _, noise: np.where(STARTS < -2, -2, 2) + 0.2 * noise)
    chance = _draws(5, lambda rng, noise: rng.choice([-2.0, 2.0], noise.shape) + 0.2 * noise)
    for name, found, least in (
        ("in the middle", middle, 0.98),
        ("at the side", side, 0.98),
        ("by chance", chance, 0.6),
    ):
        expect(f"attractors where two places part {name}", _share([fit.is_attractor for fit in found]), 0)
        noticed = _share([not fit.one_line and fit.place is None for fit in found])
        expect_between(f"share in which two places that part {name} are noticed", noticed, least, 1)
    # and one place with noise is not called two
    calm = _draws(6, lambda _, noise: 0.3 * STARTS + 0.5 * noise)
    expect_between("share in which noise about a line is called more", _share([not f.one_line for f in calm]), 0, 0.1)


@known_answer("GATES")
def ends_overlap_as_often_as_they_must() -> None:
    """Two starts with one place meet in 9 of 10 cases, three seeds each; starts that stay apart never do."""
    together = [fit.meeting_share for fit in _draws(7, lambda _, noise: noise)]
    expect_between("mean share of pairs that overlap at one place", float(np.mean(together)), 0.87, 0.93)
    apart = [fit.meeting_share for fit in _draws(8, lambda _, noise: STARTS + 0.02 * noise)]
    expect("largest share of pairs that overlap where all stay", max(apart), 0)
