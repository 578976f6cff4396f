"""Two conversations read by turns, each with its own state, are the same to the bit as each alone."""

import pytest
import torch

from fixtures.subjects import resolve
from harness.isolation import interleave
from harness.runtime import seeded


def small(name):
    with seeded(0):
        return resolve(name, "3.5M").build(257).eval()


def conversations(pairs=3, length=24):
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(257, (2, length), generator=generator)) for _ in range(pairs)]


@pytest.mark.parametrize("name", ["GF-MH", "RWKV6", "MAMBA2", "GPT2"])
def test_a_model_that_keeps_its_states_apart(name):
    found = interleave(small(name), conversations(), turns=3, device="cpu")

    assert (found.pairs, found.equal, found.largest) == (3, 3, 0.0)


def test_conversations_of_different_length():
    texts = conversations(pairs=2)
    found = interleave(small("RWKV6"), [(texts[0][0], texts[1][1][:17])], turns=3, device="cpu")

    assert found.equal == 1


def test_a_model_that_mixes_them_is_seen():
    found = interleave(small("mutant:leak_between_conversations"), conversations(), turns=3, device="cpu")

    assert found.equal == 0
    assert found.largest > 0


def test_a_difference_that_is_no_number_is_a_difference():
    model = small("RWKV6")
    forward = model.forward

    def spoiled(tokens_BT, state=None, *args, **kwargs):
        logits_BTV, after = forward(tokens_BT, state, *args, **kwargs)
        return logits_BTV * float("nan"), after

    model.forward = spoiled
    assert interleave(model, conversations(1), turns=2, device="cpu").equal == 0
