"""COUPLING judges every seed that it measured, whichever of them the first order misleads about."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

SUITE = Path(__file__).parents[2] / "suites/diagnostics/test_coupling_of_gradient_and_state.py"
ESTIMATE = SimpleNamespace(value=2.0, ci=(1.5, 2.5))


class InvalidError(Exception):
    """Ends the check, as the judge's own exception does."""


class Judge:
    def __init__(self):
        self.judged = []

    def __call__(self, metric, value, **where):
        self.judged.append((metric, where["seed"]))

    def info(self, metric, value, **where):
        pass

    def invalid(self, reason):
        raise InvalidError(reason)


def coupling(seed, invalid=""):
    shares = {"rwkv": ESTIMATE, "mamba": ESTIMATE}
    found = SimpleNamespace(ratio=ESTIMATE, shares=shares, invalid=invalid, distortion=1.0, branches=tuple(shares))
    return seed, found, {"seed": seed}


def judged(*couplings):
    spec = importlib.util.spec_from_file_location("coupling_suite", SUITE)
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    judge = Judge()
    said = ""
    try:
        suite.test_no_branch_is_coupled_alone(couplings, judge)
    except InvalidError as reason:
        said = str(reason)
    return judge.judged, said


@pytest.mark.parametrize("misled", [0, 1, 2])
def test_one_seed_that_misleads_takes_nothing_from_the_others(misled):
    found, said = judged(*(coupling(seed, "off" if seed == misled else "") for seed in range(3)))
    assert {seed for _, seed in found} == {0, 1, 2} - {misled}
    assert said == f"seed {misled}: off"


def test_sound_seeds_are_all_judged_and_none_is_invalid():
    found, said = judged(*(coupling(seed) for seed in range(3)))
    assert [seed for metric, seed in found if metric == "ratio"] == [0, 1, 2]
    assert not said
