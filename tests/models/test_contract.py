"""Every registry model against models/protocol.py, in fp64 so that nothing hides behind rounding."""

import pytest
import torch

from models import get_model, list_models
from models.protocol import HOOKS, State, StateError, StatefulModel, capabilities
from models.stack import ContextError

MODELS = list_models()
ONE_OF_EACH = ["GF-MH", "RWKV6", "MAMBA2", "GPT2", "SEQ-4R10M"]
EXACT = {"rtol": 0.0, "atol": 1e-10}  # fp64; the values compared are of order 1


def assert_same_state(left: State, right: State, **tolerance: float) -> None:
    right_items = {str(path): tensor for path, tensor in right.items()}
    left_items = {str(path): tensor for path, tensor in left.items()}
    assert left_items.keys() == right_items.keys()
    for path, tensor in left_items.items():
        torch.testing.assert_close(tensor, right_items[path], **tolerance, msg=lambda text, p=path: f"{p}: {text}")


def readout(logits_BTV, state):
    """A scalar that depends on every logit and on every entry of the final state."""
    total = (logits_BTV * torch.linspace(-1, 1, logits_BTV.numel(), dtype=logits_BTV.dtype).view_as(logits_BTV)).sum()
    return total + sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for _, t in state.items())


@pytest.mark.parametrize("name", MODELS)
def test_two_segments_equal_one_pass_in_logits_state_and_gradients(name, awake_model, tokens_BT):
    model = awake_model(name)
    names, parameters = zip(*model.named_parameters(), strict=True)
    whole, whole_state = model(tokens_BT, return_states=True)
    whole_grads = torch.autograd.grad(readout(whole, whole_state), parameters)

    first, carried = model(tokens_BT[:, :7], return_states=True)
    second, final = model(tokens_BT[:, 7:], carried, return_states=True)
    split = torch.cat([first, second], dim=1)

    torch.testing.assert_close(split, whole, **EXACT)
    assert_same_state(final, whole_state, **EXACT)
    for parameter_name, whole_grad, grad in zip(
        names, whole_grads, torch.autograd.grad(readout(split, final), parameters), strict=True
    ):
        scale = whole_grad.abs().max().item()
        assert (grad - whole_grad).abs().max().item() <= 1e-10 * max(scale, 1), parameter_name
        assert scale > 0 or parameter_name.startswith("positions"), f"{parameter_name} has no gradient: a blind test"


@pytest.mark.parametrize("name", MODELS)
def test_a_lost_state_is_noticed(name, awake_model, tokens_BT):
    model = awake_model(name)
    whole = model(tokens_BT)[:, 7:]
    _, carried = model(tokens_BT[:, :7], return_states=True)
    for wrong in (carried.zeros(), carried.rows([1, 0])):
        assert (model(tokens_BT[:, 7:], wrong) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("kind", ["wkv", "shift_att", "ssm", "conv", "k", "v"])
def test_every_kind_of_state_matters(name, kind, awake_model, tokens_BT):
    model = awake_model(name)
    _, carried = model(tokens_BT[:, :7], return_states=True)
    if kind not in {path.kind for path, _ in carried.items()}:
        assert kind not in {path.kind for path, _ in model.init_state(2).items()}
        return
    damaged = carried.replace(carried.zeros(), lambda path: path.kind == kind)
    assert (model(tokens_BT[:, 7:], damaged) - model(tokens_BT[:, 7:], carried)).abs().max() > 1e-4


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_steps_of_one_token_equal_one_pass(name, awake_model, tokens_BT):
    model = awake_model(name)
    with torch.no_grad():
        whole, whole_state = model(tokens_BT, return_states=True)
        state, steps = None, []
        for t in range(tokens_BT.shape[1]):
            logits, state = model(tokens_BT[:, t : t + 1], state, return_states=True)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **EXACT)
    assert_same_state(state, whole_state, **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_no_state_means_zeros(name, awake_model, tokens_BT):
    model = awake_model(name)
    torch.testing.assert_close(model(tokens_BT, model.init_state(2)), model(tokens_BT), **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_later_tokens_do_not_reach_earlier_logits(name, awake_model, tokens_BT):
    model = awake_model(name)
    changed = tokens_BT.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 512
    with torch.no_grad():
        difference = (model(changed) - model(tokens_BT)).abs().amax(dim=(0, 2))
    assert difference[:11].max() <= 1e-12
    assert difference[11:].min() > 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_a_batch_do_not_see_each_other(name, awake_model, tokens_BT):
    model = awake_model(name)
    alone = torch.cat([model(tokens_BT[:1]), model(tokens_BT[1:])])
    torch.testing.assert_close(model(tokens_BT), alone, **EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_writes_add_up_to_what_the_residual_stream_received(name, awake_model, tokens_BT):
    model = awake_model(name)
    seen = []
    for layer in model.layers:  # what enters the layer, and what enters the feed-forward's norm after the branches
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        layer.ffn_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    _, activations = model(tokens_BT, return_activations=True)
    for index, layer in enumerate(activations.layers):
        before, after = seen[2 * index], seen[2 * index + 1]
        assert after.equal(before + sum(layer.writes.values()))
        assert all(write.abs().max() > 1e-3 for write in layer.writes.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("double", [False, True])
def test_watching_changes_no_bit(name, double, awake_model, tokens_BT):
    model = awake_model(name, double)
    plain, plain_state = model(tokens_BT, return_states=True)
    watched, state, activations = model(tokens_BT, return_states=True, return_activations=True)
    also_watched, _ = model(tokens_BT, return_activations=True)
    assert watched.equal(plain)
    assert also_watched.equal(plain)
    assert model(tokens_BT).equal(plain)
    assert_same_state(state, plain_state, rtol=0.0, atol=0.0)
    assert len(activations.layers) == len(state.layers) == model.config.num_layers


@pytest.mark.parametrize("name", MODELS)
def test_states_have_the_promised_shapes_and_dtypes(name, awake_model, tokens_BT):
    model = awake_model(name, double=False)
    config = model.config
    _, state = model(tokens_BT, return_states=True)
    D, T, B = config.d_model, 19, 2
    shapes = {"shift_att": (B, D)}
    if config.rwkv is not None:
        shapes["wkv"] = (B, D // config.rwkv.head_size, config.rwkv.head_size, config.rwkv.head_size)
    if config.mamba is not None:
        shapes |= {"ssm": (B, 2 * D // 64, 64, 64), "conv": (B, 2 * D + 2 * 64, 3)}
    if config.attention is not None:
        shapes |= dict.fromkeys("kv", (B, config.attention.num_heads, T, D // config.attention.num_heads))
    kinds = {"rwkv": ["wkv", "shift_att"], "mamba": ["ssm", "conv"], "attention": ["k", "v"]}
    for layer, branches in zip(state.layers, config.layers, strict=True):
        assert {branch: list(layer[branch]) for branch in layer} == {branch: kinds[branch] for branch in branches}
    for path, tensor in state.items():
        assert tensor.shape == shapes[path.kind], path
        assert tensor.dtype == torch.float32
    start = {str(path): tensor for path, tensor in model.init_state(B).items()}
    assert start.keys() == {str(path) for path, _ in state.items()}
    assert all(not tensor.any() for tensor in start.values())


@pytest.mark.parametrize("name", ["GF-MH", "HGF", "SEQ-4R10M", "GPT2"])
def test_long_states_stay_fp32_under_bf16_autocast(name, awake_model, tokens_BT):
    model = awake_model(name, double=False)
    exact = model(tokens_BT)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state, _ = model(tokens_BT, return_states=True, return_activations=True)
        resumed = model(tokens_BT[:, 7:], model(tokens_BT[:, :7], return_states=True)[1])
    assert logits.dtype == torch.bfloat16
    assert {t.dtype for path, t in state.items() if path.kind in ("wkv", "ssm")} <= {torch.float32}
    assert (logits - exact).abs().max() <= 0.05 * exact.abs().max()
    assert (resumed - exact[:, 7:]).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_observations_have_the_promised_shapes_and_ranges(name, awake_model, tokens_BT):
    model = awake_model(name)
    _, state, activations = model(tokens_BT, return_states=True, return_activations=True)
    for layer, branches, layer_state in zip(activations.layers, model.config.layers, state.layers, strict=True):
        assert tuple(layer.writes) == branches
        recurrent = [branch for branch in branches if branch != "attention"]
        assert list(layer.decays) == list(layer.innovations) == recurrent
        for branch in recurrent:
            long = layer_state[branch]["wkv" if branch == "rwkv" else "ssm"]
            assert layer.innovations[branch].shape == (2, 19, long.shape[1])
            want = (2, 19, *long.shape[1:3]) if branch == "rwkv" else (2, 19, long.shape[1])
            decay = layer.decays[branch]
            assert decay.shape == want
            assert 0 <= decay.min() <= decay.max() <= 1
        gated = model.config.fusion is not None and model.config.fusion.gate_init is not None
        assert (layer.gate is not None) == gated
        if gated:
            torch.testing.assert_close(torch.sigmoid(layer.gate_logits), layer.gate)


@pytest.mark.parametrize("name", MODELS)
def test_hooks_agree_with_the_configuration(name, awake_model):
    model = awake_model(name)
    assert isinstance(model, StatefulModel)
    assert capabilities(model) == frozenset(HOOKS)
    modules = model.branch_modules()
    assert tuple(modules) == model.branches == tuple(dict.fromkeys(b for layer in model.config.layers for b in layer))
    for branch, mixers in modules.items():
        assert len(mixers) == sum(branch in layer for layer in model.config.layers)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_state_can_be_saved_loaded_swapped_and_injected(name, awake_model, tokens_BT, tmp_path):
    model = awake_model(name)
    with torch.no_grad():
        _, state = model(tokens_BT[:, :7], return_states=True)
        rest = tokens_BT[:, 7:]
        whole = model(rest, state)
        state.save(tmp_path / "state.safetensors")
        assert model(rest, State.load(tmp_path / "state.safetensors")).equal(whole)
        assert model(rest, state.clone()).equal(whole)
        # the swap: each document's rest under the other's state, which is the other's state with this rest
        torch.testing.assert_close(model(rest, state.rows([1, 0])), model(rest.flip(0), state).flip(0), **EXACT)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gradients_reach_an_injected_state(name, awake_model, tokens_BT):
    model = awake_model(name)
    _, state = model(tokens_BT[:, :7], return_states=True)
    leaf = state.requires_grad_()
    model(tokens_BT[:, 7:], leaf).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().max() > 0 for _, tensor in leaf.items())


def test_a_state_that_does_not_fit_is_refused_by_name(awake_model, tokens_BT):
    model = awake_model("GF-MH", double=False)
    state = model.init_state(2)
    with pytest.raises(StateError, match=r"layers\.0\.rwkv\.wkv is \[1, 4, 32, 32\] float32; it must be \[2, 4"):
        model(tokens_BT, model.init_state(1))
    with pytest.raises(StateError, match="3 layers, the model 4"):
        model(tokens_BT, State(state.layers[:3]))
    with pytest.raises(StateError, match=r"layers\.0\.rwkv\.wkv is .* bfloat16; it must be .* float32"):
        model(tokens_BT, state.map(lambda _, t: t.bfloat16()))
    without = State.of([{"rwkv": layer["rwkv"]} for layer in state.layers])
    with pytest.raises(StateError, match=r"lacks layers\.0\.mamba\.ssm"):
        model(tokens_BT, without)
    with pytest.raises(StateError, match=r"has layers\.0\.mamba\.ssm, which this model does not"):
        awake_model("RWKV6", double=False)(tokens_BT, State.of([*state.layers, *state.layers[:2]]))


def test_tokens_must_be_a_batch_of_positions(awake_model):
    model = awake_model("WS")
    for shape in ((4,), (2, 0)):
        with pytest.raises(ValueError, match="must be \\[batch, positions >= 1\\]"):
            model(torch.zeros(shape, dtype=torch.long))


def test_gpt2_names_its_last_position(awake_model):
    model = awake_model("GPT2", double=False)
    tokens = torch.zeros(1, 1024, dtype=torch.long)
    with torch.no_grad():
        _, state = model(tokens, return_states=True)
        with pytest.raises(ContextError, match="position 1025, but this model has 1024 learned positions"):
            model(tokens[:, :1], state)


@pytest.mark.parametrize("name", ["GF", "GF-MH", "GF-RH", "GF-XM", "GF-XR", "HGF", "HGF-MH", "HGF-RH"])
def test_a_fresh_model_mixes_with_its_initial_share(name, tokens_BT):
    model = get_model(name, vocab_size=512)
    _, state = model(tokens_BT, return_states=True)
    share = {"": 0.5, "MH": 0.3, "RH": 0.7, "XM": 0.03, "XR": 0.97}[name.partition("-")[2]]
    torch.testing.assert_close(state["gate"], torch.full_like(state["gate"], share), rtol=1e-5, atol=0)


def test_the_quick_start_gives_true_recurrent_states():
    x = torch.randint(0, 16000, (2, 8))

    from models import get_model

    model = get_model("GF-MH", vocab_size=16000)
    logits, states = model(x, return_states=True)

    assert logits.shape == (2, 8, 16000)
    assert states["rwkv_state"].shape == (4, 2, 4, 32, 32)  # [L,B,H,K,V]
    assert states["mamba_state"].shape == (4, 2, 4, 64, 64)  # [L,B,H,P,N]
    assert states["gate"].shape == (4, 2, 8, 1)
    assert states["rwkv_state"][1].equal(states.layers[1]["rwkv"]["wkv"])
    assert states["rwkv_state"].abs().amax(dim=(1, 2, 3, 4)).min() > 0
    assert not states["gate"].requires_grad


def test_a_fresh_rwkv6_writes_exactly_nothing(tokens_BT):
    _, activations = get_model("GF", vocab_size=512)(tokens_BT, return_activations=True)
    assert all(not layer.writes["rwkv"].any() and layer.writes["mamba"].any() for layer in activations.layers)
