"""Models whose every part is awake: a fresh RWKV-6 writes zero, and a test of zeros proves nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from models import get_model

VOCAB_SIZE = 512


def wake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise to every parameter, so that no matrix is zero and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            parameter.add_(noise, alpha=0.05)
    return model


def awake(name: str, double: bool = True) -> nn.Module:
    """A registry model with every part awake."""
    torch.manual_seed(0)
    model = wake(get_model(name, vocab_size=VOCAB_SIZE))
    return model.double() if double else model


@pytest.fixture
def awake_model() -> Callable[..., nn.Module]:
    return awake


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (2, 19), generator=torch.Generator().manual_seed(1))
