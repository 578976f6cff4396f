"""Known answers of the state-health score."""

import math
from itertools import pairwise

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import score
from harness.metrics.expect import expect, expect_between
from harness.records import Limits

LOWER = Limits(pass_band=(0.0, 2.0), warn_band=(0.0, 10.0), source="test", calibrated=False)
HIGHER = Limits(pass_band=(5.0, math.inf), warn_band=(2.0, math.inf), source="test", calibrated=False)
BAND = Limits(pass_band=(0.05, 20.0), warn_band=(0.005, 200.0), source="test", calibrated=False)
SCALES = (
    (LOWER, score.Scale((-math.inf, 1.0), log=True)),
    (HIGHER, score.Scale((10.0, math.inf))),
    (BAND, score.Scale((1.0, 1.0), log=True)),
)


@known_answer("SHS")
def edges_have_fixed_scores() -> None:
    """Ideal 1, pass edge .7, fail edge .3, twice beyond it 0; a value that is not finite 0."""
    lower, higher, band = SCALES
    for (limits, scale), value, want in (
        (lower, 1.0, 1.0), (lower, 0.3, 1.0), (lower, 2.0, 0.7), (lower, 10.0, 0.3), (lower, 20.0, 0.0),
        (lower, 1e9, 0.0), (lower, math.inf, 0.0), (lower, math.nan, 0.0), (lower, math.sqrt(20.0), 0.5),
        (higher, 12.0, 1.0), (higher, 5.0, 0.7), (higher, 2.0, 0.3), (higher, 1.0, 0.0), (higher, 3.5, 0.5),
        (band, 1.0, 1.0), (band, 20.0, 0.7), (band, 0.05, 0.7), (band, 200.0, 0.3), (band, 0.0025, 0.0),
        (band, 0.0, 0.0),
    ):  # fmt: skip
        expect(f"score of {value:g}", score.subscore(value, limits, scale), want, 1e-9)


@known_answer("SHS")
def a_worse_value_never_scores_better() -> None:
    """Monotone away from the ideal, on both sides."""
    for limits, scale in SCALES:
        ideal = min(max(scale.ideal[0], 1e-3), scale.ideal[1])
        for direction in (2.0, 0.5):
            values = ideal * direction ** np.linspace(0, 12, 200)
            scores = [score.subscore(float(v), limits, scale) for v in values]
            assert all(b <= a + 1e-12 for a, b in pairwise(scores)), f"{limits}: a step up"


@known_answer("SHS")
def the_weakest_decides() -> None:
    """All ideal gives 1, one at its pass edge .7; the mean does not hide a dead part (negative control)."""
    expect("all ideal", score.StateScore.of({"a": 1.0, "b": 1.0}).value, 1.0)
    edge = score.StateScore.of({"a": 1.0, "b": 0.7, "c": 1.0})
    expect("one at its pass edge", edge.value, 0.7)
    dead = score.StateScore.of({f"good {i}": 1.0 for i in range(9)} | {"dead": 0.0})
    expect("one dead of ten", dead.value, 0.0)
    expect_between("their mean", dead.mean, 0.89, 0.91)
    assert dead.weakest == "dead"
