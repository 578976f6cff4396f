"""BPE-REPL: what the founding documents say of the balance of gradients under byte-pair encoding, and when to worry."""

from collections.abc import Sequence

from harness.interaction import INACTIVE_KL, StateAblation
from harness.metrics.intervals import Interval

EXPECTED = (0.2, 0.5)
"""RWKV-6 over Mamba-2, as the founding documents found it. A model in balance need not lie there."""

ALARMING = (0.1, 10.0)
"""Beyond these a gradient ratio is asked a second question: is a branch dead?"""


def replicates(ratio: Interval) -> bool:
    """Whether the whole interval lies where the founding documents expect it."""
    return EXPECTED[0] <= ratio.low and ratio.high <= EXPECTED[1]


def is_alarming(ratio: Interval) -> bool:
    """Whether the ratio lies beyond ``ALARMING``; one that is no number does."""
    return not ALARMING[0] <= ratio.value <= ALARMING[1]


def dead_branches(ablation: StateAblation) -> Sequence[str]:
    """The branches whose state, taken from another document, changes nothing of what is said next: see D3."""
    return [branch for branch in ablation.branches if not ablation.effect(branch).kl.high >= INACTIVE_KL]
