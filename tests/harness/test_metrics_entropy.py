import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from harness.metrics.entropy import EntropyShare, entropy_share, gaussian_init, softmax_entropy


@pytest.mark.parametrize("std", [0.0, 0.3, 2.0, 30.0])
def test_entropy_equals_an_independent_fp64_computation(std):
    logits = std * torch.randn(3, 5, 211, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found = softmax_entropy(logits)

    expected = scipy_entropy(torch.softmax(logits, -1).numpy(), axis=-1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert found.dtype == torch.float64


def test_fp32_and_bf16_logits_lose_no_more_than_their_own_rounding():
    logits = 2 * torch.randn(64, 4096, generator=torch.Generator().manual_seed(1))

    assert softmax_entropy(logits) == pytest.approx(softmax_entropy(logits.double()), abs=2e-5)
    rounded = logits.bfloat16()
    assert softmax_entropy(rounded) == pytest.approx(softmax_entropy(rounded.double()), abs=2e-5)


def test_a_shift_of_all_logits_changes_nothing_and_impossible_tokens_carry_nothing():
    logits = torch.randn(4, 32, dtype=torch.float64)

    assert softmax_entropy(logits + 1e4) == pytest.approx(softmax_entropy(logits), abs=1e-9)
    padded = torch.cat([logits, torch.full((4, 8), -math.inf)], -1)
    assert softmax_entropy(padded) == pytest.approx(softmax_entropy(logits), abs=1e-12)


def test_rows_taken_in_chunks_give_the_same_share(monkeypatch):
    logits = torch.randn(2, 9, 50)
    whole = entropy_share(logits)

    monkeypatch.setattr("harness.metrics.entropy.CHUNK_ELEMENTS", 150)

    assert entropy_share(logits) == pytest.approx(whole, abs=1e-14)


def test_no_positions_have_no_share():
    assert math.isnan(EntropyShare().value)
    assert math.isnan(entropy_share(torch.zeros(0, 4)))


@pytest.mark.parametrize(("std", "entropy_nats"), [(0.226, 9.678), (0.5, 9.579), (1.0, 9.205)])
def test_the_gaussian_prediction_holds_inside_its_range(std, entropy_nats):
    """Gaussian logits of V = 16384, measured and predicted."""
    logits = std * torch.randn(128, 16384, generator=torch.Generator().manual_seed(2))
    measured = softmax_entropy(logits).mean().item()

    assert measured == pytest.approx(entropy_nats, abs=0.003)
    assert gaussian_init(std, 16384).entropy_nats == pytest.approx(measured, abs=0.003)


def test_the_gaussian_loss_is_that_of_random_targets():
    logits = 0.8 * torch.randn(4096, 1000, generator=torch.Generator().manual_seed(3))
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(4096, dtype=torch.long)).item()

    assert gaussian_init(0.8, 1000).loss_nats == pytest.approx(loss, abs=4 * 0.8 / 64)


def test_outside_its_range_there_is_no_prediction():
    assert math.isnan(gaussian_init(3.0, 16384).entropy_nats)
    assert math.isnan(gaussian_init(math.nan, 16384).loss_nats)
