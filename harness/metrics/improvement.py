"""IMPROVEMENT: by how much a loss fell, in units of what is demanded."""

import numpy as np

from harness.metrics.intervals import ClusterRatio

RELATIVE, ABSOLUTE = 0.05, 0.5
"""The demanded fall: 5 % of the nats, or half a nat, whichever is less. Below 10 nats that is always the 5 %."""


def gain_in_demanded_units(before: ClusterRatio, after: ClusterRatio) -> ClusterRatio:
    """The fall of a loss over the demanded one, paired by document: at least 1 where either criterion is met.

    0 for no change, below 0 where the loss rose. Both losses in nats, over the same documents and tokens; which of the
    two criteria is the easier is decided by the loss before. Raises ``ValueError`` for other documents.
    """
    fall = before.minus(after)
    if RELATIVE * before.value <= ABSOLUTE:
        return ClusterRatio(fall.numerators, RELATIVE * before.numerators, before.n)
    return ClusterRatio(fall.numerators, np.asarray(ABSOLUTE * before.denominators), before.n)
