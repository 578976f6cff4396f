"""The order in which records are shown: the worst first."""

import math

from harness.records import SEVERITY, Record, Status
from harness.thresholds import margin


def badness(record: Record) -> tuple[int, float]:
    """Sorts records worst first: by status, then by the margin relative to the limit.

    An exact claim that fails is worse than any miss; one that holds has nothing to spare and nothing to lose.
    """
    if record.threshold is None or record.value is None:
        return SEVERITY.index(record.status), math.inf if record.status is Status.PASS else -math.inf
    distance = margin(record.threshold, record.value, record.ci, record.direction)
    if math.isnan(distance):
        return SEVERITY.index(record.status), -math.inf
    ends = [abs(end) for end in record.threshold.pass_band if math.isfinite(end) and end]
    return SEVERITY.index(record.status), distance / min(ends, default=1.0)
