"""Known answers of EXTENDED and BPE-REPL: which readings worsened, and when a gradient ratio is alarming."""

import math

from harness.extended import Reading, worsening
from harness.known_answers import known_answer
from harness.metrics.expect import expect
from harness.metrics.intervals import Interval
from harness.records import Limits
from harness.replication import is_alarming, replicates


def _limits(check: str, metric: str) -> Limits:
    """PASS from 2 on, WARN from 1 on, whatever the check."""
    return Limits(pass_band=(2, math.inf), warn_band=(1, math.inf), source=f"{check} {metric}", calibrated=True)


def _readings(*values: float) -> list[Reading]:
    return [Reading("D2", "directions", f"layer {layer}", value) for layer, value in enumerate(values)]


def _counts(before: list[Reading], after: list[Reading]) -> tuple[int, int]:
    found = worsening(before, after, _limits)
    return len(found.to_warn), len(found.to_fail)


@known_answer("EXTENDED")
def only_what_fell_is_counted() -> None:
    """Place by place: what was bad stays excused, what got better does not make up for what got worse."""
    before = _readings(3.0, 3.0, 1.5, 1.5, 0.5, 3.0)
    for after, want in (
        (before, (0, 0)),
        (_readings(1.5, 3.0, 1.5, 1.5, 0.5, 3.0), (1, 0)),
        (_readings(0.5, 3.0, 0.5, 3.0, 3.0, 3.0), (0, 2)),
        (_readings(math.nan, 3.0, 1.5, 1.5, math.nan, 3.0), (0, 1)),
        (_readings(30.0, 3.0, 1.1, 1.9, 0.1, 3.0), (0, 0)),
    ):
        got = _counts(before, after)
        expect("worsened to WARN", got[0], want[0])
        expect("worsened to FAIL", got[1], want[1])


@known_answer("EXTENDED")
def what_can_no_longer_be_read_is_worse() -> None:
    """A reading that is gone is a FAIL; a new one is held against PASS."""
    expect("one is gone", _counts(_readings(3.0, 3.0), _readings(3.0))[1], 1)
    expect("a new one, WARN", _counts(_readings(3.0), _readings(3.0, 1.5))[0], 1)
    expect("a new one, PASS (negative control)", sum(_counts(_readings(3.0), _readings(3.0, 3.0))), 0)


@known_answer("BPE-REPL")
def only_far_out_are_the_branches_asked() -> None:
    """1 and .11 are no alarm, .09, 11 and NaN are; .3 replicates, 1 does not, nor does an interval that sticks out."""
    alarming = [is_alarming(Interval(value, value, value, 1, 1)) for value in (1.0, 0.11, 0.09, 11.0, math.nan, 0.0)]
    assert alarming == [False, False, True, True, True, True], f"alarming: {alarming}"
    replicated = [replicates(Interval(0.3, *ci, 1, 1)) for ci in ((0.25, 0.35), (0.1, 0.35), (math.nan, math.nan))]
    assert replicated == [True, False, False], f"replicates: {replicated}"
    assert not replicates(Interval(1.0, 1.0, 1.0, 1, 1)), "a model in balance was taken for the founding documents'"
