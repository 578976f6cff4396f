"""The numbers of a probe row against plain arithmetic on a sample made by hand, and the row in words."""

import math

import numpy as np
import pytest
import torch

from harness.metrics.state import SATURATED_LOGIT
from harness.probe_row import probe_row, summary
from harness.state_probe import BranchSample, ModelSample

DOCUMENTS = np.array([0, 0, 1, 2])
LAYERS = 2


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def sample() -> ModelSample:
    """Two layers: both branches in the first, one in the second. The heads' states differ in scale."""
    g = torch.Generator().manual_seed(5)
    scale_H = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)[:, None, None]

    def site(matrix):
        state = draw(g, 4, 3, 5, 6) * scale_H if matrix else draw(g, 4, 7) + 2
        return BranchSample({"s": state}, draw(g, 4, 2, 3).abs(), draw(g, 24).sigmoid(), draw(g, 4, 2, 8))

    branches = {(0, "left"): site(True), (0, "right"): site(False), (1, "left"): site(True)}
    gates = {0: draw(g, 4, 2, 1).sigmoid()}
    return ModelSample(branches, gates, {0: torch.tensor([[0.0, 9.0, -9.0, 1.0]])}, DOCUMENTS, (3, 5))


def test_states_by_layer_and_head(sample):
    row = probe_row(sample)
    assert sorted(row["state_rms"]) == ["left", "right"]
    for layer in range(LAYERS):
        state = sample.branches[layer, "left"].state["s"].numpy()
        assert row["state_rms"]["left"][layer] == pytest.approx(
            [math.sqrt(np.mean(state[:, h] ** 2)) for h in range(3)]
        )
        varying = np.sum((state - state.mean(0)) ** 2) / np.sum(state**2)
        assert row["state_rho"]["left"][layer] == pytest.approx(varying)
        sigma = np.linalg.svd(state, compute_uv=False)
        p = sigma / sigma.sum(-1, keepdims=True)
        ranks = np.sort(np.exp(-(p * np.log(p)).sum(-1)).ravel())
        # the lower of the two middle ones
        assert row["erank"]["left"][layer] == pytest.approx(ranks[5])
    right = sample.branches[0, "right"].state["s"]
    assert row["state_rms"]["right"] == [[pytest.approx(float(right.square().mean().sqrt()))], None]
    assert "right" not in row["erank"], "a vector has no rank"


def test_decays_innovations_and_gates_by_layer(sample):
    row = probe_row(sample)
    for layer in range(LAYERS):
        site = sample.branches[layer, "left"]
        assert row["decay_mean"]["left"][layer] == pytest.approx(np.mean(site.decays.numpy()))
        assert row["innovation"]["left"][layer] == np.sort(site.innovations.numpy().ravel())[11]
    assert row["decay_mean"]["right"][1] is None
    assert row["gate_mean"] == [pytest.approx(float(sample.gates[0].mean())), None]
    assert SATURATED_LOGIT < 9
    assert row["gate_saturation"] == [0.5, None]


def test_writes_are_pooled_over_the_layers_in_which_both_branches_write(sample):
    row = probe_row(sample)
    left, right = (sample.branches[0, name].writes for name in ("left", "right"))
    u = (left + right).reshape(-1, 8)
    cov = {n: ((w.reshape(-1, 8) - w.reshape(-1, 8).mean(0)) * (u - u.mean(0))).sum() for n, w in
           (("left", left), ("right", right))}  # fmt: skip
    total = (u - u.mean(0)).square().sum()
    assert row["share_left"] == pytest.approx(float(cov["left"] / total))
    assert row["share_left"] + row["share_right"] == pytest.approx(1)
    by_layer = [sample.branches[layer, "left"].writes for layer in range(LAYERS)]
    rho = [float((w - w.mean(0)).square().sum() / w.square().sum()) for w in by_layer]
    assert row["rho_left"] == pytest.approx(np.mean(rho)), "each layer counts alike"
    assert (row["dead_left"], row["dead_right"]) == (0.0, 0.0)


def test_the_worst_layer_decides_what_is_dead_and_silence_is_nan_wherever_it_stands(sample):
    writes = sample.branches[1, "left"].writes
    writes[..., :2] = 0
    assert probe_row(sample)["dead_left"] == 0.25
    writes.zero_()
    row = probe_row(sample)
    assert math.isnan(row["dead_left"])
    assert math.isnan(row["rho_left"])
    assert math.isfinite(row["rho_right"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan_in_its_place_alone(sample, bad):
    site = sample.branches[1, "left"]
    site.state["s"][2, 1, 0, 0] = bad
    site.writes[1, 1, 3] = bad
    row = probe_row(sample)
    assert [math.isfinite(rms) for rms in row["state_rms"]["left"][1]] == [True, False, True]
    assert math.isnan(row["state_rho"]["left"][1])
    assert math.isnan(row["rho_left"])
    assert math.isfinite(row["state_rho"]["left"][0])


def test_several_states_of_a_branch_go_by_their_kinds(sample):
    sample.branches[0, "left"].state["t"] = torch.ones(4, 3, 2, 2, dtype=torch.float64)
    row = probe_row(sample)
    assert sorted(row["state_rms"]) == ["left.s", "left.t", "right"]
    assert row["state_rms"]["left.t"] == [[1.0, 1.0, 1.0], None]
    assert row["state_rho"]["left.t"] == [0.0, None], "a state that is the same whatever is read"
    assert row["erank"]["left.t"][0] == pytest.approx(1.0)


def test_the_row_in_words():
    assert summary({"rho_rwkv": 0.04, "rho_mamba": 0.553, "gate_mean": [0.2, None, 0.46]}) == (
        "rwkv rho .04, mamba .55, gate .33"
    )
    assert summary({"state_rho": {"rwkv": [0.25, None, 0.75]}}) == "rwkv rho .50", "states stand in for writes"
    assert summary({"rho_rwkv": math.nan}) == "rwkv rho nan"
    assert summary({"rho_rwkv": 1.0}) == "rwkv rho 1.00"
