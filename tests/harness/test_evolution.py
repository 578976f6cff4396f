"""Half-lives, edits and the heat map: closed forms, real models, and kernels that run on other decays than reported."""

import math

import numpy as np
import pytest
import torch

import harness.influence
from harness.evolution import LAGS, evolution
from harness.evolution_figures import figures
from harness.influence import figures as heat_figures
from harness.influence import influence
from harness.known_answers_evolution import Leaky, random_windows
from harness.metrics.evolution import half_life, half_life_interval, monotonicity
from kernels import backends
from models import get_model

VOCAB = 64


def real_model(name, scale_noise=0.02):
    torch.manual_seed(0)
    model = get_model(name, vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale_noise * torch.randn_like(parameter))
    return model


def measured(model, vocab_size=VOCAB):
    windows = random_windows(4)
    donors = [*range(1, len(windows)), 0]
    return evolution(model, windows, donors, device="cpu", vocab_size=vocab_size)


@pytest.mark.parametrize("name", ["GF-MH", "SEQ-1R30M"])
def test_a_difference_shrinks_exactly_as_the_reported_decays_say(name):
    for branch in measured(real_model(name)).branches.values():
        assert branch.dose[0].value == 0
        for layer in branch.layers.values():
            assert layer.half_life.value == pytest.approx(layer.implied_half_life, rel=1e-4)
            np.testing.assert_allclose(layer.retained, layer.implied, rtol=1e-3, atol=1e-6)
            assert layer.superposition_error < 1e-5


def test_a_kernel_with_other_decays_than_reported_is_seen():
    def faster(kernel):
        return lambda r, k, v, log_w, u, state=None: kernel(r, k, v, 8 * log_w, u, state)

    with backends.wrap("wkv6", faster):
        found = measured(real_model("RWKV6")).branches["rwkv"]
    ratios = [layer.half_life.value / layer.implied_half_life for layer in found.layers.values()]
    assert max(ratios) < 0.2


def test_the_half_life_falls_with_every_share():
    generator = np.random.default_rng(0)
    for _ in range(50):
        shares = np.sort(generator.uniform(0.01, 1.0, len(LAGS)))[::-1]
        assert half_life(LAGS, 0.9 * shares) <= half_life(LAGS, shares)
    assert math.isnan(half_life(LAGS, [math.nan] * len(LAGS)))


def test_the_interval_of_a_half_life_covers_what_varies_between_documents():
    generator = np.random.default_rng(1)
    decays = generator.uniform(0.8, 0.95, 30)
    shares = np.stack([decays ** (2 * lag) for lag in LAGS], axis=1)
    found = half_life_interval(LAGS, shares, np.ones(30), seed=0)
    assert found.low < found.value < found.high
    same = half_life_interval(LAGS, np.tile(shares[:1], (30, 1)), np.ones(30), seed=0)
    assert same.high - same.low < 1e-9
    single = half_life_interval(LAGS, shares[:1], np.ones(1), seed=0)
    assert single.ci == (-math.inf, math.inf)


def test_ties_share_their_rank():
    assert monotonicity([0, 1, 2, 4], [0.0, 0.5, 0.5, 1.0]) == pytest.approx(0.948683, abs=1e-6)


def test_a_model_that_sees_the_future_moves_what_came_before():
    class Acausal(Leaky):
        def forward(self, tokens_BT, state=None, return_states=False):
            ahead_BT = tokens_BT.roll(-1, 1)
            return super().forward(ahead_BT, state, return_states)

    tokens_BT = torch.zeros(1, 16, dtype=torch.long)
    draws_BS = torch.full((1, 1), 9)
    assert influence(Acausal(0.9), tokens_BT, draws_BS, [8], list(range(16))).before_source > 0.01
    assert influence(Leaky(0.9), tokens_BT, draws_BS, [8], list(range(16))).before_source == 0


def test_what_is_no_number_is_no_absence_of_influence():
    class Lost(Leaky):
        def forward(self, tokens_BT, state=None, return_states=False):
            found = super().forward(tokens_BT, state, return_states)
            return (found[0] * math.nan, found[1]) if isinstance(found, tuple) else found * math.nan

    tokens_BT, draws_BS = torch.zeros(1, 16, dtype=torch.long), torch.full((1, 1), 9)
    assert math.isnan(influence(Lost(0.9), tokens_BT, draws_BS, [8], list(range(16))).before_source)


@pytest.mark.parametrize("at_once", [2, 3, 5])
def test_edits_read_together_move_what_they_move_one_by_one(monkeypatch, at_once):
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, 32, (2, 16), generator=generator)
    draws_BS = torch.randint(0, 32, (2, 5), generator=generator)
    asked = (tokens_BT, draws_BS, [1, 4, 7, 8, 12], [3, 8, 15])
    alone = influence(Leaky(0.9), *asked)
    monkeypatch.setattr(harness.influence, "rows_at_once", lambda rows, length, device: rows * at_once)
    together = influence(Leaky(0.9), *asked)
    assert np.allclose(together.output, alone.output, atol=1e-6)
    assert together.state.keys() == alone.state.keys()
    for branch, moved in alone.state.items():
        assert np.shape(moved) == (5, 3)
        assert np.allclose(together.state[branch], moved, rtol=1e-5)
    assert together.before_source == alone.before_source == 0


def test_figures_name_every_branch():
    found = measured(Leaky(0.9), vocab_size=32)
    drawn = figures(found, "toy")
    assert {"evolution-dose", "evolution-edit", "evolution-retention"} == drawn.keys()
    assert all("memory" in {**figure.panels, **figure.panels.get("", {})} for figure in drawn.values())
    tokens_BT, draws_BS = torch.zeros(1, 8, dtype=torch.long), torch.full((1, 1), 3)
    maps = heat_figures(influence(Leaky(0.9), tokens_BT, draws_BS, [2], [1, 3, 5]), "toy")
    assert maps.keys() == {"heat-map-output", "heat-map-memory"}
    assert maps["heat-map-output"].values[0][0] == -6.0
