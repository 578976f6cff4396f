"""Types of dialogues: known answers, single clusters of many shapes, and an independent index."""

import math
import time

import numpy as np
import pytest
from registered_answers import fails, registered_in

from harness.metrics import genome as module
from harness.metrics import known_answers_genome
from harness.metrics.genome import Genome, adjusted_rand, clusters_by_gap, genome, standardise, ward
from harness.metrics.known_answers_genome import planted

KNOWN_ANSWERS = registered_in(known_answers_genome)


@pytest.mark.parametrize("function", KNOWN_ANSWERS, ids=lambda f: f.__name__)
def test_known_answer_holds(function):
    function()


def test_they_are_fast():
    for function in KNOWN_ANSWERS:
        started = time.process_time()
        function()
        assert time.process_time() - started < 1


def rand(first, second):
    """Without the correction for chance."""
    a, b = np.asarray(first), np.asarray(second)
    same = (a[:, None] == a) == (b[:, None] == b)
    return float((same.sum() - len(a)) / (len(a) * (len(a) - 1)))


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("adjusted_rand", rand),
        ("clusters_by_gap", lambda points, most, seed: 2),
        # features as they come: the loudest one decides
        ("standardise", lambda features: features),
        # a null that is none: every partition is above it
        ("_turns_shuffled", lambda features, random: random.standard_normal(features.shape)),
        ("_turns_shuffled", lambda features, random: features),
    ],
    ids=["uncorrected", "always two", "unscaled", "a null of noise", "no null"],
)
def test_a_broken_metric_fails_a_known_answer(monkeypatch, name, broken):
    monkeypatch.setattr(module, name, broken)
    assert any(fails(function) for function in KNOWN_ANSWERS)


def single(random, kind, n=100, turns=6, features=2):
    noise = random.standard_normal((n, turns, features))
    if kind == "drifting":
        noise = np.cumsum(noise, axis=1)
    if kind == "slopes":
        noise += np.linspace(-2, 2, turns)[None, :, None] * random.standard_normal((n, 1, features))
    if kind == "heavy tails":
        noise = random.standard_t(3, noise.shape)
    return noise


@pytest.mark.parametrize("kind", ["noise", "drifting", "slopes", "heavy tails"])
def test_one_cloud_is_one_cluster(kind):
    random = np.random.default_rng(0)
    found = [clusters_by_gap(standardise(single(random, kind)).reshape(100, -1), seed=seed) for seed in range(20)]
    assert found.count(1) >= 19


@pytest.mark.parametrize("k", [2, 3, 5])
def test_as_many_clouds_as_were_made(k):
    random = np.random.default_rng(1)
    centres = 4 * random.standard_normal((k, 6))
    points = centres[np.arange(20 * k) % k] + 0.5 * random.standard_normal((20 * k, 6))
    assert clusters_by_gap(points, seed=0) == k
    assert adjusted_rand(ward(points, [k])[0], np.arange(20 * k) % k) == 1


def test_three_clouds_on_a_line_are_three():
    random = np.random.default_rng(2)
    points = np.arange(60)[:, None] % 3 * [3.0, 3.0] + 0.2 * random.standard_normal((60, 2))
    assert clusters_by_gap(points, seed=0) == 3


def test_blurred_courses_are_less_stable_and_noise_is_not_reported():
    clear, blurred = (genome(planted(noise)[0], seed=0, most=5) for noise in (0.3, 1.2))
    assert clear.reportable
    assert blurred.clusters == 1 or blurred.stability < clear.stability
    forced = module.stability(
        single(np.random.default_rng(3), "noise").reshape(100, -1), 3, 30, np.random.default_rng(4)
    )
    assert forced < module.STABLE


def test_what_may_be_reported():
    assert Genome(3, (), 0.7, 0.5).reportable
    for k, stable, null in ((1, math.nan, math.nan), (3, 0.59, 0.1), (3, 0.7, 0.7), (3, 0.7, 0.9)):
        assert not Genome(k, (), stable, null).reportable


def test_equal_dialogues_are_one_type():
    found = genome(np.tile(np.arange(6.0)[None, :, None], (30, 1, 2)), seed=0)
    assert (found.clusters, found.reportable) == (1, False)


def test_a_feature_that_does_not_vary_does_not_count():
    features = np.stack([planted(0.3)[0][..., 0], np.full((48, 6), 7.0)], -1)
    assert standardise(features)[..., 1].tolist() == np.zeros((48, 6)).tolist()
    assert genome(features, seed=0, most=5).clusters == 3


def test_the_answer_is_that_of_the_seed():
    features, _ = planted(0.5)
    assert genome(features, seed=3, most=5) == genome(features, seed=3, most=5)


@pytest.mark.parametrize("shape", [(10, 6, 2), (48, 1, 2), (48, 6)])
def test_too_little_is_refused(shape):
    with pytest.raises(ValueError, match="dialogues"):
        genome(np.random.default_rng(0).standard_normal(shape), seed=0)


def test_nan_is_refused():
    features = planted(0.3)[0]
    features[3, 2, 1] = math.nan
    with pytest.raises(ValueError, match="finite"):
        genome(features, seed=0)


def test_the_index_agrees_with_counting_pairs():
    random = np.random.default_rng(5)
    for _ in range(20):
        a, b = random.integers(0, 4, 25), random.integers(0, 3, 25)
        pairs = np.triu_indices(25, 1)
        one, two = (a[:, None] == a)[pairs], (b[:, None] == b)[pairs]
        expected = one.mean() * two.mean() * len(one)
        want = ((one & two).sum() - expected) / ((one.sum() + two.sum()) / 2 - expected)
        assert adjusted_rand(a, b) == pytest.approx(want, abs=1e-12)
