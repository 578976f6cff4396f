"""Assertions of the known-answer tests. They hold for numbers only: NaN is never what was expected."""

import math


def expect(what: str, got: float, want: float, within: float = 0.0) -> None:
    """Assert that ``got`` lies within an absolute distance of ``want``; for ``want`` NaN, that it is NaN."""
    # infinity minus itself is NaN
    is_met = math.isnan(got) if math.isnan(want) else got == want or abs(got - want) <= within
    assert is_met, f"{what}: got {got:.9g}, expected {want:.9g}" + (f" within {within:g}" if within else " exactly")


def expect_between(what: str, got: float, low: float, high: float) -> None:
    """Assert low <= got <= high."""
    assert low <= got <= high, f"{what}: got {got:.9g}, expected {low:.9g} .. {high:.9g}"
