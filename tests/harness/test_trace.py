"""The tracer shows true states, changes nothing, and keeps nothing alive."""

import gc

import pytest
import torch

from harness.trace import observing, state_after, trace
from models import get_model

VOCAB = 256


@pytest.fixture(scope="module", params=["GF-MH", "RWKV6", "MAMBA2", "GPT2", "SEQ-1R30M"])
def model(request):
    torch.manual_seed(0)
    model = get_model(request.param, vocab_size=VOCAB)
    # a fresh RWKV-6 writes nothing at all
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tokens_BT():
    return torch.randint(0, VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))


def test_the_states_are_those_that_the_model_returns(model, tokens_BT):
    found = trace(model, tokens_BT, [1, 7, 40])
    assert found.positions == (1, 7, 40)
    for position, state in zip(found.positions, found.states, strict=True):
        with torch.no_grad():
            _, expected = model(tokens_BT[:, :position], return_states=True)
        for (path, tensor), (_, want) in zip(state.items(), expected.items(), strict=True):
            torch.testing.assert_close(tensor, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()), msg=str(path))


def test_the_activations_are_those_of_one_pass(model, tokens_BT):
    found = trace(model, tokens_BT, [3, 17, 40]).activations
    with torch.no_grad():
        _, whole = model(tokens_BT, return_activations=True)
    for ours, theirs in zip(found.layers, whole.layers, strict=True):
        for branch, writes_BTD in theirs.writes.items():
            assert ours.writes[branch].shape == writes_BTD.shape
            error = (ours.writes[branch] - writes_BTD).norm() / writes_BTD.norm()
            assert error < 1e-4
        assert ours.innovations.keys() == theirs.innovations.keys()
        assert (ours.gate is None) == (theirs.gate is None)


def test_looking_changes_neither_result_nor_mode_nor_random_state(model, tokens_BT):
    model.train()
    before = model(tokens_BT)
    random_state = torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, tokens_BT, [5, 40])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model(tokens_BT), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_observing_a_pass_does_not_change_its_logits(model, tokens_BT):
    with torch.no_grad():
        plain_BTV = model(tokens_BT)
        observed_BTV, _, _ = model(tokens_BT, return_states=True, return_activations=True)
    assert torch.equal(plain_BTV, observed_BTV)


def test_no_graph_is_kept_alive(model, tokens_BT):
    found = trace(model, tokens_BT, [5, 40])
    tensors = [tensor for state in found.states for _, tensor in state.items()]
    tensors += [write for layer in found.activations.layers for write in layer.writes.values()]
    assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)
    gc.collect()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trace_goes_on_from_a_state(model, tokens_BT):
    carried = state_after(model, tokens_BT[:, :11])
    rest = trace(model, tokens_BT[:, 11:], [29], state=carried).states[0]
    whole = state_after(model, tokens_BT)
    for (path, tensor), (_, want) in zip(rest.items(), whole.items(), strict=True):
        torch.testing.assert_close(tensor, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()), msg=str(path))


def test_the_mode_is_restored_when_the_model_raises(model):
    model.train()
    with pytest.raises(ValueError, match="tokens have shape"), observing(model):
        model(torch.zeros(3, dtype=torch.long))
    assert model.training


def test_positions_must_ascend_inside_the_text(model, tokens_BT):
    for positions in ([], [0, 3], [5, 5], [41]):
        with pytest.raises(AssertionError):
            trace(model, tokens_BT, positions)
