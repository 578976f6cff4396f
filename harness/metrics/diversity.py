"""How varied generated text is, in n-grams of tokens."""

import math
from collections.abc import Sequence

REPEATED = 4
"""Length of the n-grams whose return counts as repetition."""


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams of several texts together, in (0, 1]; NaN where there is none.

    It falls with the amount of text: compare only as many tokens with as many.
    Source  Li et al., arXiv:1510.03055.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Sequence[Sequence[int]], n: int = REPEATED) -> float:
    """Share of n-grams that stood in the same text before, mean over texts, in [0, 1); NaN where none is long enough.

    Source  "seq-rep-n" of Welleck et al., arXiv:1908.04319.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := _grams(text, n))]
    return sum(shares) / len(shares) if shares else math.nan
