import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.metrics.balance import ActivationShares, activation_shares, ratio_of_share, smaller_share
from harness.metrics.gradients import gradient_norm, gradient_ratio, gradient_summary
from harness.metrics.intervals import bootstrap_ratio


def writes(seed, deviations, documents=12, positions=30, width=5):
    generator = torch.Generator().manual_seed(seed)
    return {
        branch: deviation * torch.randn(documents, positions, width, generator=generator)
        for branch, deviation in deviations.items()
    }


def direct_shares(u):
    """The definition, spelled out on all positions at once: tr Cov(u_c, u) / tr Cov(u)."""
    flat = {branch: value.reshape(-1, value.shape[-1]).double().numpy() for branch, value in u.items()}
    total = sum(flat.values())
    centred = total - total.mean(0)
    return {b: float(((v - v.mean(0)) * centred).sum() / (centred**2).sum()) for b, v in flat.items()}


def test_shares_equal_the_definition_however_the_batches_fall():
    u = writes(60, {"rwkv": 1.0, "mamba": 0.3})
    u["rwkv"] = u["rwkv"] + 40
    u["mamba"] = u["mamba"] + 0.2 * u["rwkv"]
    running = ActivationShares(("rwkv", "mamba"))
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        running.add({branch: value[rows] for branch, value in u.items()}, np.arange(12)[rows] // 2)

    found = running.shares()

    for branch, expected in direct_shares(u).items():
        assert found[branch].value == pytest.approx(expected, abs=1e-9)
        assert (found[branch].n, len(found[branch].numerators)) == (360, 6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (3.0, 1.0), (0.1, 1.0)])
def test_independent_branches_share_by_variance(alpha, beta):
    shares = activation_shares(writes(61, {"rwkv": alpha, "mamba": beta}, documents=64, positions=64), np.arange(64))

    expected = alpha**2 / (alpha**2 + beta**2)
    assert shares["rwkv"].value == pytest.approx(expected, abs=0.02)
    assert shares["rwkv"].value + shares["mamba"].value == pytest.approx(1, abs=1e-12)
    interval = bootstrap_ratio(shares["rwkv"], seed=0)
    assert interval.low <= expected <= interval.high


def test_branches_that_never_vary_have_no_share():
    shares = activation_shares({"rwkv": torch.ones(4, 3, 2), "mamba": torch.zeros(4, 3, 2)}, np.arange(4))

    assert math.isnan(shares["rwkv"].value)


def test_a_dead_branch_shows_even_beside_a_large_constant():
    u = writes(62, {"rwkv": 1.0, "mamba": 0.0})

    assert activation_shares({**u, "mamba": u["mamba"] + 1e4}, np.arange(12))["mamba"].value == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.5, 4.0, 19.0])
def test_share_and_ratio_are_inverse(ratio):
    assert ratio_of_share(smaller_share(ratio)) == pytest.approx(ratio)
    assert smaller_share(1 / ratio) == pytest.approx(smaller_share(ratio))


def test_shares_at_the_ends():
    assert smaller_share(0.0) == smaller_share(math.inf) == 0
    assert math.isinf(ratio_of_share(0.0))
    assert all(math.isnan(value) for value in (smaller_share(-1.0), ratio_of_share(0.6), ratio_of_share(math.nan)))


def test_gradient_norm_is_the_root_of_all_squares():
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    (layers[0](torch.ones(1, 3)).sum() * 2).backward()

    # the second layer got no gradient and counts as zero
    parameters = [p for layer in layers for p in layer.parameters()]
    assert float(gradient_norm(parameters)) == pytest.approx(math.sqrt(2 * 3 * 4 + 2 * 4))
    assert float(gradient_norm(layers[1].parameters())) == 0


def test_adam_does_not_see_what_the_gradient_ratio_sees():
    """The second pitfall: gradients ten times larger move the ratio by ten and the trained weights not at all."""
    trained, norms = [], []
    for scale in (1.0, 10.0):
        weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = torch.optim.Adam([weight], lr=0.1, eps=1e-30)
        for _ in range(20):
            optimizer.zero_grad()
            (scale * (weight - torch.arange(4.0)).square().sum()).backward()
            norms.append(float(gradient_norm([weight])))
            optimizer.step()
        trained.append(weight.detach())

    assert norms[20] == pytest.approx(10 * norms[0])
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-9, atol=1e-12)


def test_the_ratio_is_signed_by_direction():
    """RWKV-6 over Mamba-2: smaller RWKV-6 gradients give a ratio below 1."""
    assert gradient_ratio(np.full(200, 0.0042), np.full(200, 0.0412), seed=0).value == pytest.approx(0.102, abs=1e-3)


def test_the_summary_looks_at_the_last_steps_only():
    norms = np.r_[np.full(100, 50.0), np.linspace(0.5, 1.5, 201)]

    summary = gradient_summary(norms, clip=1.0, last=201)

    assert summary.median == pytest.approx(1.0)
    assert summary.clip_fraction == pytest.approx(0.5, abs=0.01)
    assert all(math.isnan(v) for v in (gradient_summary([], 1.0).median, gradient_summary([1, math.inf], 1.0).median))
