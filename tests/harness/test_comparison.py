"""What changed since a baseline: only what the intervals and the number of comparisons allow to be called a change."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.baseline import load_baseline
from harness.comparison import Metric, Metrics, compare, metrics_of
from harness.errors import HarnessError
from harness.metrics.change import Z90, believed, difference_noise, two_sided_p
from harness.records import Limits, Record, Status


def metric(value, half=None, name="activity", **fields):
    ci = None if half is None else (value - half, value + half)
    return Metric(**{"check": "D3", "metric": name, "value": value, "ci": ci, "direction": "higher", **fields})


def run(*metrics, **fields):
    return Metrics(**{"model": "GF-MH", "scale": "3.5M", "corpus": "sotu", "metrics": metrics, **fields})


def only(now, then):
    (change,) = compare(run(now), run(then)).changes
    return change


# --- the mathematics --------------------------------------------------------------------------------------------------


def test_the_noise_of_symmetric_intervals_is_that_of_independent_errors():
    noise = difference_noise(1.0, (1 - 3 * Z90, 1 + 3 * Z90), 0.0, (-4 * Z90, 4 * Z90))
    assert noise == pytest.approx(5.0)


def test_only_the_halves_that_face_each_other_count():
    # a rise: the lower half of the later interval, the upper half of the earlier
    assert difference_noise(1.0, (0.9, 99.0), 0.0, (-99.0, 0.1)) == pytest.approx(math.hypot(0.1, 0.1) / Z90)
    assert difference_noise(0.0, (-99.0, 0.1), 1.0, (0.9, 99.0)) == pytest.approx(math.hypot(0.1, 0.1) / Z90)


def test_a_noise_that_is_not_known_is_nan_and_never_zero():
    assert math.isnan(difference_noise(2.0, (2.0, 2.0), 1.0, (1.0, 1.0)))
    assert math.isnan(difference_noise(2.0, (math.nan, 3.0), 1.0, (0.0, 2.0)))
    assert two_sided_p(5.0, difference_noise(2.0, (-math.inf, math.inf), 1.0, (0.0, 2.0))) == 1.0
    assert math.isnan(two_sided_p(1.0, math.nan))


def test_p_values_of_a_normal_difference():
    assert two_sided_p(Z90, 1.0) == pytest.approx(0.1)
    assert two_sided_p(-1.959964, 1.0) == pytest.approx(0.05, rel=1e-5)
    assert two_sided_p(0.0, 1.0) == 1.0


def test_benjamini_and_hochberg_of_their_own_paper():
    # the fifteen p-values of their section 3.2: four stand at q = .05
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
                0.7590, 1.0]  # fmt: skip
    assert believed(p_values, 0.05) == [True] * 4 + [False] * 11


def test_a_step_that_misses_its_own_limit_stands_when_a_later_one_meets_its():
    assert believed([0.04, 0.045, 0.05], 0.05) == [True, True, True]
    assert believed([math.nan, 0.04], 0.05) == [False, True]
    assert believed([], 0.05) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_more_of_the_same_claims_never_stand_than_without_correction(p_values):
    stand = believed(p_values, 0.05)
    assert all(p <= 0.05 for p, claim in zip(p_values, stand, strict=True) if claim)


def test_of_runs_that_differ_by_noise_alone_few_claim_a_change():
    rng = np.random.default_rng(0)
    claims, unclear = 0, []
    for _ in range(100):
        now, then = rng.normal(size=(2, 50))
        found = compare(
            run(*(metric(v, Z90, case=str(i)) for i, v in enumerate(now))),
            run(*(metric(v, Z90, case=str(i)) for i, v in enumerate(then))),
        )
        claims += bool(found.those("changed"))
        unclear.append(len(found.those("unclear", "changed")) / 50)
    assert claims <= 12, "5 % of the runs, within the luck of 100"
    # one by one a tenth of them lies beyond its 90 % noise: that is why they are not called changes
    assert 0.08 < np.mean(unclear) < 0.12


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "then", "verdict", "tendency"),
    [
        (metric(2.0, 0.1), metric(1.0, 0.1), "changed", "better"),
        (metric(1.0, 0.1), metric(2.0, 0.1), "changed", "worse"),
        (metric(2.0, 0.1, direction="lower"), metric(1.0, 0.1), "changed", "worse"),
        (metric(2.0, 0.1, direction="band"), metric(1.0, 0.1), "changed", ""),
        (metric(1.1, 0.1), metric(1.0, 0.1), "within noise", ""),
        (metric(2.0), metric(1.0, 0.1), "no noise known", ""),
        (metric(2.0, 0.0), metric(1.0, 0.0), "no noise known", ""),
        (metric(2.0, exact=True), metric(1.0, exact=True), "changed", "better"),
        (metric(2.0), metric(2.0), "equal", ""),
        (metric(math.inf), metric(math.inf), "equal", ""),
        (metric(math.nan), metric(math.nan), "equal", ""),
        (metric(math.inf), metric(1.0, 0.1), "no noise known", ""),
    ],
)
def test_what_counts_as_a_change(now, then, verdict, tendency):
    change = only(now, then)
    assert (change.verdict, change.tendency) == (verdict, tendency)


def test_what_stands_alone_may_not_stand_among_many():
    # 1.8 standard errors of the difference: beyond its own 90 %, p = .07
    near = math.sqrt(2) * 1.8
    assert only(metric(near, Z90), metric(0.0, Z90)).verdict == "unclear"
    # 2.5: p = .012, a claim alone and none among forty
    far = math.sqrt(2) * 2.5
    assert only(metric(far, Z90), metric(0.0, Z90)).verdict == "changed"
    others = [metric(0.0, Z90, case=str(i)) for i in range(40)]
    found = compare(run(metric(far, Z90), *others), run(metric(0.0, Z90), *others))
    assert found.changes[0].verdict == "unclear"


def test_numbers_of_one_run_alone_are_named():
    found = compare(run(metric(1.0), metric(1.0, name="new")), run(metric(1.0), metric(1.0, name="lost", layer=2)))
    assert (found.gone, found.new) == (["D3.lost[layer 2]"], ["D3.new"])
    assert found.summary == (
        "1 numbers compared: 0 changed (0 better, 0 worse), 1 equal, 1 only in the baseline, 1 only here"
    )


def test_a_number_of_the_same_name_is_paired_in_order():
    found = compare(run(metric(1.0), metric(2.0), metric(3.0)), run(metric(1.0), metric(2.0)))
    assert [change.verdict for change in found.changes] == ["equal", "equal"]
    assert len(found.new) == 1


@pytest.mark.parametrize(
    ("fields", "remark"),
    [
        ({"corpus": "markov"}, "measured on other texts: sotu against markov"),
        ({"corpus_sha256": "b"}, "measured on other texts"),
        ({"model": "HY"}, "another model: GF-MH against HY"),
        ({"config_sha256": "b"}, "another configuration"),
        ({"device": "cuda"}, "another device: cpu against cuda"),
    ],
)
def test_what_else_differs_is_said(fields, remark):
    base = {"corpus_sha256": "a", "config_sha256": "a", "device": "cpu"}
    assert compare(run(**base), run(**base)).remarks == []
    (said,) = compare(run(**base), run(**{**base, **fields})).remarks
    assert said.startswith(remark)


def test_the_largest_change_comes_first():
    now = run(
        metric(1.0, 0.1), metric(9.0, 0.1, name="b"), metric(3.0, 0.1, name="c"), metric(2.0, name="d", exact=True)
    )
    then = run(*(metric(1.0, m.ci and 0.1, name=m.metric, exact=m.exact) for m in now.metrics))
    assert [change.now.metric for change in compare(now, then).changes] == ["d", "b", "c", "activity"]


# --- from records and files -------------------------------------------------------------------------------------------


def record(**fields):
    return Record(**{"check": "D3", "metric": "m", "status": Status.PASS, "nodeid": "n", **fields})


def test_every_number_of_a_run_is_kept_and_only_what_has_no_noise_is_exact():
    limits = Limits(pass_band=(0.0, 1.0), warn_band=(0.0, 2.0), source="s", calibrated=True)
    pinned = limits.model_copy(update={"pass_band": (0.0, 0.0)})
    found = metrics_of(
        [
            record(metric="a", value=0.5, ci=(0.4, 0.6), threshold=limits, direction="lower"),
            record(metric="b", value=0.5, threshold=limits),
            record(metric="c", value=0.0, threshold=pinned),
            record(metric="d", value=0.5, info=True, status=Status.NA),
            record(metric="e"),
            record(metric="f", status=Status.FAIL),
            record(metric="", status=Status.MISSING),
            record(metric="g", value=math.inf, threshold=limits),
        ],
        model="M",
        scale="3.5M",
        corpus="sotu",
    )
    assert [(m.metric, m.value, m.exact) for m in found.metrics] == [
        ("a", 0.5, False), ("b", 0.5, False), ("c", 0.0, True), ("d", 0.5, False), ("e", 1.0, True), ("f", 0.0, True),
        ("g", math.inf, False),
    ]  # fmt: skip
    assert Metrics.model_validate_json(found.model_dump_json()) == found


def test_a_claim_that_holds_no_longer_is_a_change_for_the_worse():
    held, broken = (
        metrics_of([record(status=status)], model="M", scale="3.5M", corpus="") for status in (Status.PASS, Status.FAIL)
    )
    (change,) = compare(broken, held).changes
    assert (change.verdict, change.tendency) == ("changed", "worse")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read"),
        ("[]", "does not hold the numbers of a run"),
        ("no json", "does not hold the numbers of a run"),
        (json.dumps({**run().model_dump(), "schema_version": 2}), r"\[schema_version\] Input should be 1"),
    ],
)
def test_what_is_no_baseline_is_refused(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "baseline_metrics.json").write_text(content)
    with pytest.raises(HarnessError, match=reason):
        load_baseline(tmp_path)
