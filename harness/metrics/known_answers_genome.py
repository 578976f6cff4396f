"""Known answers of the clustering of dialogues: planted types, no types, and types that turns do not tell."""

import math

import numpy as np
from numpy.typing import NDArray

from harness.known_answers import known_answer
from harness.metrics import genome
from harness.metrics.expect import expect, expect_between

DIALOGUES, NUM_TURNS = 48, 6


def planted(noise: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Dialogues ``[48, 6, 3]`` of three courses over the turns, and which each follows; the last feature is noise."""
    turns = np.linspace(0, 1, NUM_TURNS)
    courses = np.array([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns), 2 * turns - 1])
    kind = np.arange(DIALOGUES) % 3
    random = np.random.default_rng(41)
    told = courses[kind][:, :, None] + noise * random.standard_normal((DIALOGUES, NUM_TURNS, 2))
    return np.concatenate([told, 100 * random.standard_normal((DIALOGUES, NUM_TURNS, 1))], axis=2), kind


@known_answer("GENOME")
def the_rand_index_by_hand() -> None:
    """Same partition under other names 1, all together against all apart 0, crossed pairs -.5, one split off 4 / 7."""
    for first, second, want in (
        ([0, 0, 1, 1], [7, 7, 3, 3], 1.0),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 1, 1], [0, 0, 1, 2], 4 / 7),
        ([0, 0, 0], [5, 5, 5], 1.0),
    ):
        expect(f"agreement of {first} and {second}", genome.adjusted_rand(first, second), want, 1e-12)
    random = np.random.default_rng(42)
    unrelated = genome.adjusted_rand(random.integers(3, size=3000), random.integers(3, size=3000))
    expect("agreement of random partitions (negative control)", unrelated, 0.0, 0.01)


@known_answer("GENOME")
def planted_courses_are_found() -> None:
    """Three generators give three clusters that are the generators, stable and beyond those of shuffled turns."""
    features, kind = planted(0.3)
    found = genome.genome(features, seed=0, most=5)
    expect("clusters of three generators", found.clusters, 3)
    expect("agreement with the generators", genome.adjusted_rand(kind, found.labels), 1.0)
    expect_between("stability", found.stability, 0.99, 1.0)
    expect_between("stability with turns shuffled", found.null, -0.1, 0.9)
    assert found.reportable, "three planted courses are not reported"


@known_answer("GENOME")
def one_generator_is_one_cluster() -> None:
    """Noise, whatever its scale by feature, is a single cluster, of which nothing is reported."""
    noise = np.random.default_rng(43).standard_normal((DIALOGUES, NUM_TURNS, 2)) * [1.0, 100.0]
    found = genome.genome(noise, seed=0, most=5)
    expect("clusters of one generator", found.clusters, 1)
    expect("stability of one cluster", found.stability, math.nan)
    assert not found.reportable, "one cluster is reported as types"


@known_answer("GENOME")
def levels_are_no_courses() -> None:
    """Negative control: types that differ in level and not over turns are as stable when shuffled: not reported."""
    _, kind = planted(0.0)
    level = 3.0 * kind[:, None, None] + 0.3 * np.random.default_rng(44).standard_normal((DIALOGUES, NUM_TURNS, 2))
    found = genome.genome(level, seed=0, most=5)
    expect("clusters of three levels", found.clusters, 3)
    assert not found.reportable, "levels are reported as courses"
