"""Whether two measurements differ by more than their noise, and how many of many such claims to believe."""

import math
from collections.abc import Sequence

Z90 = 1.6448536269514722
"""Half a two-sided 90 % interval of a normal estimate, in standard errors."""

Bounds = tuple[float, float]


def difference_noise(now: float, now_ci: Bounds, then: float, then_ci: Bounds) -> float:
    """The standard error of ``now - then`` by the halves of the two 90 % intervals that face each other.

    A skewed interval is wide on one side only; what counts for a rise is how low the later value and how high the
    earlier one may be. Takes the two as independent: where they share their documents the noise is smaller. NaN when an
    end is NaN or both halves are empty: an interval without width says nothing of noise.

    Source  MOVER: Zou & Donner, Stat. Med. 27 (2008) 1693.
    """
    rise = now >= then
    halves = (now - now_ci[0], then_ci[1] - then) if rise else (now_ci[1] - now, then - then_ci[0])
    # the value of a skewed bootstrap may lie outside its interval
    noise = math.hypot(*(max(half, 0.0) if not math.isnan(half) else half for half in halves)) / Z90
    return noise if noise > 0 else math.nan


def two_sided_p(difference: float, noise: float) -> float:
    """Probability that a normal difference is at least as large where there is none; NaN without a noise."""
    if math.isnan(difference) or math.isnan(noise):
        return math.nan
    return math.erfc(abs(difference) / noise / math.sqrt(2)) if math.isfinite(noise) else 1.0


def believed(p_values: Sequence[float], q: float = 0.05) -> list[bool]:
    """Which of many claims stand when at most a share ``q`` of those that stand may be chance. NaN never stands.

    Source  Benjamini & Hochberg, J. R. Stat. Soc. B 57 (1995) 289; it also holds for positively dependent claims.
    """
    known = sorted(p for p in p_values if not math.isnan(p))
    limits = [p for rank, p in enumerate(known, 1) if p <= q * rank / len(known)]
    largest = limits[-1] if limits else -math.inf
    return [p <= largest for p in p_values]
