"""The count of operations against formulas written down layer by layer, apart from the code that counts."""

import pytest
import torch
from torch import nn

import kernels
from harness.flops import FlopsError, attention_flops, count_flops, training_flops_per_token
from kernels import backends
from models import get_model
from models.registry import model_config

V = 512


def _rwkv(config):
    """Multiply-adds a token of a time-mix: five square products, two low-rank pairs, the recurrence."""
    D, K = config.d_model, config.rwkv.head_size
    mix, decay = config.rwkv.mix_rank, config.rwkv.decay_rank
    products = 5 * D * D + D * 5 * mix + 5 * mix * D + 2 * D * decay
    return 2 * products + (D // K) * (5 * K * K + 5 * K)


def _mamba(config):
    """In and out projection, convolution of width 4 over x, B and C, the recurrence."""
    D, I, N, P = config.d_model, 2 * config.d_model, config.mamba.d_state, config.mamba.head_dim
    H = I // P
    products = D * (2 * I + 2 * N + H) + I * D
    return 2 * products + 2 * 4 * (I + 2 * N) + H * (5 * P * N + P)


def _attention(config, length):
    D = config.d_model
    return 2 * 4 * D * D + 2 * 2 * D * (length + 1) / 2


def _forward(name, scale, length):
    config = model_config(name, scale, V)
    D, total = config.d_model, 2 * config.d_model * V
    for layer in config.layers:
        total += 2 * 2 * D * config.d_ff
        for branch in layer:
            total += (
                {"rwkv": _rwkv, "mamba": _mamba}[branch](config)
                if branch != "attention"
                else _attention(config, length)
            )
        if len(layer) > 1:
            total += 2 * 2 * D  # one gate a position, from both branches
    return total


@pytest.mark.parametrize("scale", ["3.5M", "8M"])
@pytest.mark.parametrize("name", ["RWKV6", "MAMBA2", "GPT2", "GF-MH"])
def test_the_count_is_the_formula(name, scale):
    found = count_flops(get_model(name, scale, V), 2, 48)
    assert found.forward == pytest.approx(_forward(name, scale, 48), rel=1e-3)
    assert found.training == pytest.approx(3 * found.forward)


def test_only_attention_grows_with_the_length():
    for name, grows in (("RWKV6", False), ("GPT2", True)):
        model = get_model(name, "3.5M", V)
        short, long = (training_flops_per_token(model, 1, length) for length in (16, 128))
        assert (long > 1.01 * short) == grows, name
        # the size of the batch changes nothing
        assert training_flops_per_token(model, 3, 16) == pytest.approx(short)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_backend_does_not_change_the_count(backend):
    model = get_model("GF-MH", "3.5M", V)
    plain = count_flops(model, 1, 32)
    with backends.force("wkv6", backend), backends.force("ssd", backend):
        assert count_flops(model, 1, 32) == plain


def test_counting_leaves_the_model_as_it_was():
    model = get_model("GF-MH", "3.5M", V).train()
    tokens_BT = torch.arange(8)[None]
    before = model(tokens_BT)
    count_flops(model, 1, 16)
    assert model.training
    assert torch.equal(model(tokens_BT), before)
    assert backends.forced("wkv6") is None


def test_a_masked_attention_looks_at_every_pair():
    shape = (2, 4, 8, 16)
    causal, full = (attention_flops(shape, shape, 16, is_causal) for is_causal in (True, False))
    assert causal == 2 * 2 * 4 * 36 * 32
    assert full == 2 * 2 * 4 * 64 * 32
    # more queries than keys: the later ones see all keys
    assert attention_flops((1, 1, 3, 1), (1, 1, 2, 1), 1, True) == 2 * (1 + 2 + 2) * 2


def test_what_cannot_be_counted_is_refused():
    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(8, 4)

        def forward(self, tokens_BT):
            x_BTC = self.embedding(tokens_BT)
            A_CN = -torch.ones(4, 2)
            y_BTC, _ = kernels.selective_scan(x_BTC, x_BTC.abs(), A_CN, x_BTC[..., :2], x_BTC[..., :2], torch.ones(4))
            return y_BTC @ self.embedding.weight.T

    with pytest.raises(FlopsError, match="selective_scan"):
        count_flops(Scan(), 1, 4)
