"""Growth of states by position and by step, their collapse, and the score: against models whose states are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness import known_answers_steps, step_growth
from harness.collapse import likeness, spreads
from harness.data import Split, Windows
from harness.divergence import SiteGrowth, longest_position, position_growth, positions_of
from harness.metrics import (
    cka,
    collapse,
    growth,
    known_answers_collapse,
    known_answers_growth,
    known_answers_score,
    score,
)
from harness.metrics.intervals import Interval
from harness.state_probe import BranchSample, ModelSample
from harness.state_score import PARTS, Readings
from harness.state_score import score as score_of
from harness.step_growth import layer_steps
from harness.thresholds import load_thresholds
from models.protocol import Activations, LayerActivations, State

VOCAB, TRAINED, DOCUMENTS = 16, 250, 96


class Accumulator(nn.Module):
    """One head that adds up the codes of its tokens under a steady decay; it may report another one."""

    def __init__(self, decay: float, reported: float | None = None, grows: bool = False) -> None:
        super().__init__()
        codes = torch.randn(VOCAB, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        # no code is common to all tokens: independent writes, nothing coherent
        self.codes, self.decay, self.grows = codes - codes.mean(0), decay, grows
        self.reported = decay if reported is None else reported

    def forward(self, tokens_BT, state=None, return_states=False, return_activations=False):
        B, T = tokens_BT.shape
        held = torch.zeros(B, 1, 4, 4, dtype=torch.float64) if state is None else state.layers[0]["sum"]["s"]
        for t in range(T if not self.grows else 0):
            held = self.decay * held + self.codes[tokens_BT[:, t]]
        if self.grows:
            codes = self.codes[tokens_BT, 0]
            held = codes if state is None else torch.cat([held, codes], 1)
        outputs = [torch.zeros(B, T, VOCAB, dtype=torch.float64)]
        if return_states:
            outputs.append(State.of([{"sum": {"s": held}}]))
        if return_activations:
            decays = {"sum": torch.full((B, T, 1), self.reported, dtype=torch.float64)}
            outputs.append(Activations((LayerActivations({}, decays=decays),)))
        return tuple(outputs) if len(outputs) > 1 else outputs[0]


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(3).integers(0, VOCAB, size=DOCUMENTS * 1010).astype(np.uint16)
    split = Split(tokens, np.arange(DOCUMENTS + 1) * 1010, tuple(map(str, range(DOCUMENTS))), 0)
    return Windows.of(split, longest_position(TRAINED), DOCUMENTS)


def grow(model, windows):
    return position_growth(model, windows, trained=TRAINED, device="cpu", seed=0)


def test_the_positions_hold_the_trained_length_and_the_longest():
    for trained in (32, 100, 256, 512):
        positions = positions_of(trained)
        assert positions == sorted(set(positions))
        assert trained in positions
        assert positions[-1] == max(1000, 4 * trained)
        assert len([p for p in positions if p >= trained]) == 5


def test_an_accumulator_without_decay_grows_as_the_root_of_the_length(windows):
    [site] = grow(Accumulator(1.0), windows).sites
    # the standard error is .06
    assert site.ratios[0].value == pytest.approx(2, abs=0.15)
    assert site.exponents[0].value == pytest.approx(0.5, abs=0.05)
    # writes all alike would grow as t
    assert site.null_exponents == pytest.approx([1.0])
    assert site.settled_median is None


def test_an_accumulator_that_forgets_settles(windows):
    found = grow(Accumulator(0.95), windows)
    [site] = found.sites
    assert site.ratios[0].value == pytest.approx(1, abs=0.1)
    assert site.excesses[0].high < 0.1
    assert site.settled_median is not None
    assert site.settled_median.worst < 0.15
    assert len(site.ranks) == len(found.positions)
    # a model that says the same everywhere loses nothing anywhere
    assert [change.value for change in found.losses] == pytest.approx([0] * len(found.positions))


def test_a_decay_above_the_reported_one_is_an_excess(windows):
    [site] = grow(Accumulator(1.01, reported=0.999), windows).sites
    assert site.ratios[0].low > 10
    assert site.excesses[site.worst_excess].low > 0.5


def test_a_cache_accumulates_nothing(windows):
    found = grow(Accumulator(1.0, grows=True), windows)
    assert not found.sites
    assert "one entry a token" in found.not_measured


def test_a_state_that_is_not_finite_comes_first(windows):
    model = Accumulator(0.5)
    model.codes[3] = math.inf
    [site] = grow(model, windows).sites
    assert math.isnan(site.ratios[site.worst_head].value)


def sample(state):
    documents = np.arange(len(state)) // 2
    site = BranchSample(state={"s": state})
    return ModelSample({(0, "sum"): site}, {}, {}, documents, (0,))


def test_spreads_tell_one_direction_from_many():
    noise = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    line = torch.randn(32, 1, 1, 1, generator=torch.Generator().manual_seed(6)).double() * noise[:1] + noise[1:2]
    [many], [one] = spreads(sample(noise), 0).sites, spreads(sample(line), 0).sites
    assert many.directions.low > 10
    assert one.directions.high < 1.5
    assert spreads(sample(noise[:1].expand(32, -1, -1, -1)), 0).rho["sum"].value == pytest.approx(0)


def test_likeness_compares_every_pair_of_states(windows):
    found = likeness(Accumulator(0.9), Windows.of(windows.split, 20, 40), device="cpu", seed=0)
    assert found.sites == ["layer 0 sum"]
    assert found.values == [[pytest.approx(1)]]
    assert found.branches == []


def test_rows_without_states_and_short_logs_say_nothing():
    assert layer_steps([], 0) == []
    assert layer_steps([{"step": 200, "rho_rwkv": 0.5}], 50) == []
    row = {"state_rms": {"rwkv": [[1.0]]}, "state_rho": {"rwkv": [0.5]}}
    assert layer_steps([{"step": 10, **row}, {"step": 20, **row}], 50) == []
    assert len(layer_steps([{"step": 20, **row}, {"step": 40, **row}], 20)) == 1


def ideal():
    return {name: part.scale.ideal[0] if math.isfinite(part.scale.ideal[0]) else part.scale.ideal[1]
            for name, part in PARTS.items()}  # fmt: skip


def test_ideal_readings_score_one_and_the_weakest_decides():
    limits = load_thresholds()
    assert score_of(ideal(), limits, "3.5M").total.value == 1
    for name, part in PARTS.items():
        bands = limits.find(part.check, part.metric).at("3.5M")
        worse = 0 if math.isinf(part.scale.ideal[1]) else 1
        at_pass = score_of(ideal() | {name: bands.pass_band[worse]}, limits, "3.5M").total
        assert at_pass.value == pytest.approx(0.7), name
        assert at_pass.weakest == name
        assert score_of(ideal() | {name: math.nan}, limits, "3.5M").total.value == 0


def test_readings_keep_the_worst_and_say_what_is_missing():
    found = Readings()
    found.take("sensitivity", [0.5, 0.02], largest=False, reason="")
    found.take("size by step", [1.0, math.nan, 3.0], largest=True, reason="")
    found.take("variation by step", [], largest=True, reason="no log")
    assert found.values["sensitivity"] == 0.02
    assert math.isnan(found.values["size by step"])
    assert found.missing == ["variation by step: no log"]


class MeanScore(score.StateScore):
    """The mean in place of the weakest."""

    @classmethod
    def of(cls, subscores):
        mean = sum(subscores.values()) / len(subscores)
        return cls(mean, mean, "")


def as_they_are(states):
    return states.detach().double().flatten(1)


BROKEN = [
    (known_answers_growth, growth, "head_energy", lambda s: s.flatten(2).square().mean(-1).sqrt()),
    (known_answers_growth, growth, "coherent_sizes", lambda d, p: torch.ones(len(d), len(p), d.shape[2])),
    (known_answers_growth, growth, "growth_exponent", lambda p, n: np.zeros(np.shape(n)[:-1])),
    (known_answers_growth, growth, "variation", lambda sizes: float(np.std(sizes))),
    (known_answers_growth, growth, "slowest_timescale", lambda d: -1 / d.mean(-1)),
    (known_answers_growth, growth, "size_ratio", lambda a, b, d, seed: Interval(1.0, 1.0, 1.0, 1, 1)),
    (known_answers_collapse, collapse, "participation_ratio", lambda s: float(torch.linalg.matrix_rank(s))),
    (known_answers_collapse, collapse, "by_unit_head", as_they_are),
    (known_answers_collapse, collapse, "participation_null", lambda n, d: float(n)),
    (known_answers_collapse, collapse, "participation_interval", lambda s, d: Interval(2.0, 2.0, 2.0, 1, 1)),
    (known_answers_collapse, collapse, "utilisation", lambda ranks, shape: ranks / min(shape)),
    (known_answers_collapse, cka, "debiased_cka", cka.biased_cka),
    (known_answers_collapse, cka, "permutation_null", lambda a, b, seed, draws: 0.0),
    (known_answers_score, score, "subscore", lambda value, limits, scale: 0.7),
    (known_answers_score, score, "StateScore", MeanScore),
    (known_answers_steps, step_growth, "variation", lambda sizes: 0.0),
    (known_answers_steps, step_growth, "theil_sen", lambda x, y: (0.0, 0.0, 0.0)),
]


def registered(module):
    from harness.known_answers import _registry

    return [entry.function for entry in _registry.values() if entry.function.__module__ == module.__name__]


@pytest.mark.parametrize("module", [known_answers_growth, known_answers_collapse, known_answers_score,
                                    known_answers_steps], ids=lambda m: m.__name__.rpartition(".")[2])  # fmt: skip
def test_known_answers_hold(module):
    assert registered(module)
    for function in registered(module):
        function()


@pytest.mark.parametrize(
    ("known", "module", "name", "broken"), BROKEN, ids=[f"{row[2]}-{index}" for index, row in enumerate(BROKEN)]
)
def test_a_broken_metric_fails_its_known_answers(monkeypatch, known, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    failures = 0
    for function in registered(known):
        try:
            function()
        except AssertionError:
            failures += 1
    assert failures >= 1


def test_a_layer_is_read_where_half_of_its_heads_have_settled():
    def median_of(*settled):
        one = Interval(1.0, 1.0, 1.0, 4, 2)
        site = SiteGrowth(0, "rwkv", "wkv", [[1.0] * len(settled)], [one] * len(settled), [], [], list(settled), [])
        return site.settled_median

    assert median_of(0.25, None, None, None) is None
    assert median_of(0.1, 0.3, None, None).median == pytest.approx(0.2)
    assert median_of(0.1, 0.3, None).worst == 0.3
    assert math.isnan(median_of(0.1, math.nan).median)
    assert median_of() is None
