"""Shares of answers that share templates: estimates without bias, coverage, and what few items can show."""

import math

import numpy as np
import pytest
from template_answers import answers_by_template

from harness.metrics.clustered import clustered_share, detectable, intraclass_correlation, smallest_passing
from harness.metrics.intervals import wilson


def test_the_correlation_is_estimated_without_bias():
    random = np.random.default_rng(2)
    templates = np.repeat(np.arange(40), 10)
    for icc in (0.0, 0.1, 0.3):
        found = [
            intraclass_correlation(each.ravel(), templates)
            for each in answers_by_template(random, 0.7, icc, sets=400)
        ]  # fmt: skip
        assert np.mean(found) == pytest.approx(icc, abs=0.012)


def test_the_correlation_of_uneven_clusters_agrees_with_components_of_variance():
    random = np.random.default_rng(3)
    found = []
    for _ in range(400):
        index = np.repeat(np.arange(30), random.integers(2, 20, 30))
        values = random.standard_normal(30)[index] + math.sqrt(3) * random.standard_normal(len(index))
        found.append(intraclass_correlation(values, index))
    assert np.mean(found) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("values", "clusters"),
    [([1, 1, 1, 1], [0, 0, 1, 1]), ([1, 0], [0, 1]), ([1, 0], [0, 0]), ([1, math.nan, 0, 1], [0, 0, 1, 1])],
)
def test_a_correlation_that_cannot_be_known_is_not_a_number(values, clusters):
    assert math.isnan(intraclass_correlation(values, clusters))


@pytest.mark.parametrize(
    ("p", "icc", "most"), [(0.5, 0.1, 0.07), (0.85, 0.0, 0.06), (0.85, 0.1, 0.075), (0.85, 0.3, 0.08)]
)
def test_intervals_cover(p, icc, most):
    random = np.random.default_rng(4)
    templates = np.repeat(np.arange(40), 10)
    sets = answers_by_template(random, p, icc, sets=1500)
    found = [clustered_share(each.ravel(), templates) for each in sets]
    assert np.mean([each.low > p for each in found]) <= most
    assert np.mean([each.high < p for each in found]) <= most
    if icc:
        # negative control: items taken as independent are wrong more than twice as often
        naive = [wilson(each.sum(), 400) for each in sets]
        assert np.mean([each.low > p for each in naive]) > 0.1


def test_all_right_is_not_certain():
    templates = np.repeat(np.arange(40), 10)
    found = clustered_share(np.ones(400), templates)
    # nothing is known of the correlation: .1 is assumed, and 400 items are worth 210 less the price of 40 templates
    assert found.high == 1.0
    assert found.low == pytest.approx(wilson(400, 400, deff=1.9 * (1.6849 / 1.6449) ** 2).low, abs=1e-4)
    assert 0.98 < found.low < wilson(400, 400).low
    # an item a template: there is no correlation within templates to assume
    assert clustered_share(np.ones(40), np.arange(40)).low == pytest.approx(
        wilson(40, 40, deff=(1.6849 / 1.6449) ** 2).low, abs=1e-4
    )


def test_few_templates_are_not_believed_when_they_agree():
    # alternating answers in 8 templates look less alike than chance
    alternating, templates = np.arange(80) % 2 * 1.0, np.repeat(np.arange(8), 10)
    assert intraclass_correlation(alternating, templates) < 0
    found, believed = clustered_share(alternating, templates), wilson(40, 80)
    assert found.high - found.low > 1.5 * (believed.high - believed.low)


def test_one_template_tells_nothing_and_nan_is_no_share():
    assert clustered_share([1, 1, 0], [0, 0, 0]).ci == (0.0, 1.0)
    assert math.isnan(clustered_share([1, math.nan], [0, 1]).value)
    with pytest.raises(ValueError, match="from 0 to 1"):
        clustered_share([1, 2], [0, 1])
    with pytest.raises(ValueError, match="an item"):
        clustered_share([], [])


def test_means_over_seeds_are_narrower_than_one_seed():
    random = np.random.default_rng(5)
    seeds = (random.random((3, 400)) < 0.8).astype(float)
    templates = np.repeat(np.arange(40), 10)
    one, three = clustered_share(seeds[0], templates), clustered_share(seeds.mean(0), templates)
    assert three.high - three.low <= one.high - one.low
    # never as if there were more items than 400
    assert three.high - three.low >= 0.99 * (wilson(400 * three.value, 400).high - wilson(400 * three.value, 400).low)


@pytest.mark.parametrize(
    ("n", "row"),
    [
        (400, {0.5: 0.5425, 0.75: 0.7875, 0.8: 0.835, 0.85: 0.88, 0.9: 0.925, 0.95: 0.97}),
        (100, {0.5: 0.59, 0.75: 0.83, 0.8: 0.87, 0.85: 0.91, 0.9: 0.95, 0.95: 0.99}),
    ],
)
def test_what_must_be_seen_of_n_items(n, row):
    for limit, share in row.items():
        assert smallest_passing(n, limit) == pytest.approx(share, abs=1e-12)
        k = round(share * n)
        assert wilson(k, n).low >= limit > wilson(k - 1, n).low
    assert smallest_passing(n, 0.85, deff=1.9) > row[0.85]
    assert math.isnan(smallest_passing(5, 0.85))


def test_what_can_be_detected_passes_as_often_as_said():
    random = np.random.default_rng(6)
    truth = detectable(400, 0.85, power=0.8)
    passing = smallest_passing(400, 0.85)
    assert (random.binomial(400, truth, 100_000) >= passing * 400 - 1e-9).mean() == pytest.approx(0.8, abs=0.005)
    assert truth > passing > 0.85
    assert math.isnan(detectable(5, 0.85, power=0.8))
