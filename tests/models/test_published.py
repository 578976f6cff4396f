"""Parity of the published forms with programs that are not ours: PyPI rwkv, and transformers' Mamba-2 and GPT-2.

The weights are random and nowhere zero: official initialisations write nothing and would agree with anything.
"""

import importlib
import warnings

import pytest
import torch
from safetensors.torch import save_file

from models.config import Mamba2Config, Rwkv6Config
from models.protocol import State, StatefulModel
from models.published.gpt2 import PublishedGpt2
from models.published.mamba2 import PublishedMamba2
from models.published.official import OfficialFormatError
from models.published.rwkv6 import PublishedRwkv6, channel_mix_width

VOCAB_SIZE, LENGTH = 97, 40
PARITY = {"rtol": 0.0, "atol": 1e-4}  # logits of order 1 in fp32


@pytest.fixture
def tokens_BT():
    return torch.randint(0, VOCAB_SIZE, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def random_rwkv6_tensors(d_model: int = 64, num_layers: int = 3, head_size: int = 32, ranks: tuple = (6, 10)):
    """Tensors in the official x060 format, of a size at which every part moves the logits."""
    generator = torch.Generator().manual_seed(4)
    heads, d_ff = d_model // head_size, channel_mix_width(d_model)

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0):
        return mean + std * torch.randn(*shape, generator=generator)

    def linear(rows: int, columns: int):
        return normal(rows, columns, std=columns**-0.5)

    tensors = {"emb.weight": normal(VOCAB_SIZE, d_model), "head.weight": linear(VOCAB_SIZE, d_model)}
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(num_layers):
        block = f"blocks.{i}."
        norms += [block + "ln1", block + "ln2", block + "att.ln_x"]
        for letter in "xwkvrg":
            tensors[f"{block}att.time_maa_{letter}"] = normal(1, 1, d_model, std=0.3, mean=0.5)
        tensors |= {
            block + "att.time_maa_w1": normal(d_model, 5 * ranks[0], std=d_model**-0.5),
            block + "att.time_maa_w2": normal(5, ranks[0], d_model, std=0.3),
            block + "att.time_decay": normal(1, 1, d_model, mean=-2.0),
            block + "att.time_decay_w1": normal(d_model, ranks[1], std=d_model**-0.5),
            block + "att.time_decay_w2": normal(ranks[1], d_model, std=0.3),
            block + "att.time_faaaa": normal(heads, head_size, std=0.5),
            block + "ffn.key.weight": linear(d_ff, d_model),
            block + "ffn.receptance.weight": linear(d_model, d_model),
            block + "ffn.value.weight": linear(d_model, d_ff),
        }
        for name in ("receptance", "key", "value", "gate", "output"):
            tensors[f"{block}att.{name}.weight"] = linear(d_model, d_model)
        for letter in "kr":
            tensors[f"{block}ffn.time_maa_{letter}"] = normal(1, 1, d_model, std=0.3, mean=0.5)
    for norm in norms:
        tensors[norm + ".weight"] = normal(d_model, std=0.2, mean=1.0)
        tensors[norm + ".bias"] = normal(d_model, std=0.2)
    return tensors


@pytest.fixture
def their_rwkv(tmp_path, monkeypatch):
    """The network of the PyPI package rwkv, loaded from a .pth file of official names."""
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    monkeypatch.setenv("RWKV_CUDA_ON", "0")
    monkeypatch.setenv("RWKV_V7_ON", "0")
    path = tmp_path / "official.pth"
    torch.save(random_rwkv6_tensors(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their import compiles scripts that torch deprecates
        theirs = importlib.import_module("rwkv.model").RWKV(str(path), "cpu fp32", verbose=False)
    return theirs, path


def their_pass(theirs, tokens_T, state=None):
    with torch.no_grad():
        return theirs.forward(tokens_T.tolist(), state, full_output=True)


def test_rwkv6_agrees_with_the_rwkv_package(their_rwkv, tokens_BT):
    theirs, path = their_rwkv
    ours = PublishedRwkv6.load_official(path)
    with torch.no_grad():
        logits_BTV, state = ours(tokens_BT, return_states=True)
    assert logits_BTV.std() > 0.3
    for row, tokens_T in enumerate(tokens_BT):
        their_logits_TV, their_state = their_pass(theirs, tokens_T)
        torch.testing.assert_close(logits_BTV[row], their_logits_TV, **PARITY)
        for index, layer in enumerate(state.layers):  # theirs is flat: att shift, wkv, ffn shift of each layer
            shift_att, wkv_HKV, shift_ffn = their_state[3 * index : 3 * index + 3]
            torch.testing.assert_close(layer["rwkv"]["wkv"][row], wkv_HKV, **PARITY)
            torch.testing.assert_close(layer["rwkv"]["shift_att"][row], shift_att, **PARITY)
            torch.testing.assert_close(layer["rwkv"]["shift_ffn"][row], shift_ffn, **PARITY)


def test_rwkv6_continues_from_the_state_of_the_rwkv_package(their_rwkv, tokens_BT):
    theirs, path = their_rwkv
    ours = PublishedRwkv6.load_official(path)
    _, their_state = their_pass(theirs, tokens_BT[0, :25])
    kinds = ("shift_att", "wkv", "shift_ffn")
    layers = [
        {"rwkv": {kind: their_state[3 * index + place][None].clone() for place, kind in enumerate(kinds)}}
        for index in range(len(ours.layers))
    ]
    with torch.no_grad():
        logits_BTV = ours(tokens_BT[:1, 25:], State.of(layers))
    torch.testing.assert_close(logits_BTV[0], their_pass(theirs, tokens_BT[0])[0][25:], **PARITY)


@pytest.mark.parametrize(
    "part",
    [
        "att.time_maa_g",
        "att.time_maa_w2",
        "att.time_decay_w2",
        "att.time_faaaa",
        "att.ln_x.bias",
        "ffn.time_maa_k",
        "ln2.weight",
    ],
)
def test_rwkv6_parity_notices_a_wrong_tensor(part, tokens_BT):
    tensors = random_rwkv6_tensors()
    right = PublishedRwkv6.load_official(tensors)(tokens_BT)
    tensors["blocks.1." + part] = tensors["blocks.1." + part].flip(-1)
    assert (PublishedRwkv6.load_official(tensors)(tokens_BT) - right).abs().max() > 10 * PARITY["atol"]


def randomise(model):
    """Noise on every parameter, biases and norms included."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model.eval()


def hf_mamba2(num_groups: int, tied: bool):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install -e .[hf]")
    config = transformers.Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=3,
        state_size=16,
        head_dim=16,
        num_heads=4,
        n_groups=num_groups,
        chunk_size=16,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(6)
    return randomise(transformers.Mamba2ForCausalLM(config))


@pytest.mark.parametrize(("num_groups", "tied"), [(1, True), (1, False), (2, False)])
def test_mamba2_agrees_with_transformers(num_groups, tied, tokens_BT):
    theirs = hf_mamba2(num_groups, tied)
    ours = PublishedMamba2.load_official(theirs.state_dict(), num_groups)
    assert (ours.head is None) == tied
    with torch.no_grad():
        logits_BTV, state = ours(tokens_BT, return_states=True)
        output = theirs(tokens_BT, use_cache=True)
    assert logits_BTV.std() > 0.3
    torch.testing.assert_close(logits_BTV, output.logits, **PARITY)
    for index, layer in enumerate(state.layers):
        their_ssm = output.cache_params.get_recurrent_state(index, state_idx=0)
        their_conv = output.cache_params.get_conv_state(index, state_idx=0)
        torch.testing.assert_close(layer["mamba"]["ssm"], their_ssm.view_as(layer["mamba"]["ssm"]), **PARITY)
        torch.testing.assert_close(layer["mamba"]["conv"], their_conv[..., -3:], **PARITY)


def test_mamba2_takes_the_names_of_mamba_ssm(tokens_BT):
    tensors = hf_mamba2(1, tied=True).state_dict()
    renamed = {name.replace("embeddings", "embedding"): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    logits = [PublishedMamba2.load_official(source)(tokens_BT) for source in (tensors, renamed)]
    assert logits[0].equal(logits[1])


def hf_gpt2():
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install -e .[hf]")
    config = transformers.GPT2Config(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    torch.manual_seed(7)
    return randomise(transformers.GPT2LMHeadModel(config))


def test_gpt2_agrees_with_transformers(tokens_BT):
    theirs = hf_gpt2()
    ours = PublishedGpt2.load_official(theirs.state_dict(), num_heads=4)
    with torch.no_grad():
        logits_BTV, state = ours(tokens_BT, return_states=True)
        output = theirs(tokens_BT, use_cache=True)
    assert logits_BTV.std() > 0.3
    torch.testing.assert_close(logits_BTV, output.logits, **PARITY)
    for layer, theirs_layer in zip(state.layers, output.past_key_values.layers, strict=True):
        torch.testing.assert_close(layer["attention"]["k"], theirs_layer.keys, **PARITY)
        torch.testing.assert_close(layer["attention"]["v"], theirs_layer.values, **PARITY)


def test_gpt2_files_without_prefix_and_with_masks_load(tokens_BT):
    tensors = hf_gpt2().state_dict()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    logits = [PublishedGpt2.load_official(source, num_heads=4)(tokens_BT) for source in (tensors, bare)]
    assert logits[0].equal(logits[1])


def test_gpt2_refuses_an_untied_head():
    tensors = hf_gpt2().state_dict()
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(OfficialFormatError, match=r"unknown lm_head\.weight"):
        PublishedGpt2.load_official(tensors, num_heads=4)


PUBLISHED = {
    "rwkv6": lambda: PublishedRwkv6.load_official(random_rwkv6_tensors()),
    "mamba2": lambda: PublishedMamba2.load_official(hf_mamba2(2, tied=False).state_dict(), 2),
    "gpt2": lambda: PublishedGpt2.load_official(hf_gpt2().state_dict(), num_heads=4),
}


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_forms_meet_the_contract(form, tokens_BT):
    model = PUBLISHED[form]().double()
    exact = {"rtol": 0.0, "atol": 1e-9}
    with torch.no_grad():
        whole, final, activations = model(tokens_BT, return_states=True, return_activations=True)
        assert whole.equal(model(tokens_BT))
        state, steps = None, []
        for t in range(LENGTH):
            logits, state = model(tokens_BT[:, t : t + 1], state, return_states=True)
            steps.append(logits)
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, **exact)
        torch.testing.assert_close(model(tokens_BT, model.init_state(2)), whole, **exact)
        lost = model(tokens_BT[:, 9:], model(tokens_BT[:, :9], return_states=True)[1].zeros())
    assert (lost - whole[:, 9:]).abs().max() > 1e-3
    for (path, tensor), (other_path, other) in zip(state.items(), final.items(), strict=True):
        assert path == other_path
        torch.testing.assert_close(tensor, other, **exact)
    assert isinstance(model, StatefulModel)
    assert len(activations.layers) == 3


@pytest.mark.parametrize(("suffix", "save"), [(".pth", torch.save), (".safetensors", save_file)])
def test_official_files_load_in_both_formats(suffix, save, tmp_path, tokens_BT):
    tensors = random_rwkv6_tensors()
    path = tmp_path / f"weights{suffix}"
    save(tensors, path)
    assert PublishedRwkv6.load_official(path)(tokens_BT).equal(PublishedRwkv6.load_official(tensors)(tokens_BT))


class Payload:
    """What a hostile pickle holds: an object that runs code when it is read."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    path = tmp_path / "hostile.pth"
    torch.save({"emb.weight": Payload()}, path)
    with pytest.raises(Exception, match="Weights only load failed"):
        PublishedRwkv6.load_official(path)
    assert capsys.readouterr().out == ""


def test_all_missing_unknown_and_misshapen_names_are_listed(tmp_path):
    tensors = random_rwkv6_tensors()
    del tensors["blocks.1.att.ln_x.bias"], tensors["ln_out.weight"]
    tensors["blocks.0.att.time_mix_k"] = torch.zeros(1)
    with pytest.raises(OfficialFormatError) as caught:
        PublishedRwkv6.load_official(tensors)
    for part in ("missing blocks.1.att.ln_x.bias", "missing ln_out.weight", "unknown blocks.0.att.time_mix_k"):
        assert part in str(caught.value)
    misshapen = {**random_rwkv6_tensors(), "ln_out.bias": torch.zeros(3)}
    with pytest.raises(OfficialFormatError, match=r"final_norm\.bias is \[3\], not \[64\]"):
        PublishedRwkv6.load_official(misshapen)
    with pytest.raises(OfficialFormatError, match=r"lack blocks\.0\.att\.time_faaaa"):
        PublishedRwkv6.load_official({"emb.weight": torch.zeros(3, 3)})
    with pytest.raises(OfficialFormatError, match=r"ends in '\.npz'; readable are \.safetensors, \.pth"):
        PublishedRwkv6.load_official(tmp_path / "weights.npz")


def test_fresh_published_models_start_as_their_authors_start_them():
    torch.manual_seed(0)
    rwkv = PublishedRwkv6(VOCAB_SIZE, 64, 2, Rwkv6Config(32, 4, 8))
    assert rwkv.embedding.weight.abs().max() <= 1e-4
    for layer in rwkv.layers:
        assert not layer.mixers["rwkv"].output.weight.any()
        assert not layer.channel_mix.value.weight.any()
        assert not layer.channel_mix.receptance.weight.any()
    torch.testing.assert_close(  # gain 1/2 sqrt(V/d) on orthogonal columns
        rwkv.head.weight.T @ rwkv.head.weight, torch.eye(64) * 0.25 * VOCAB_SIZE / 64, rtol=0, atol=1e-5
    )
    mamba = PublishedMamba2(VOCAB_SIZE, 64, 4, Mamba2Config(d_state=16, head_dim=16))
    mixer = mamba.layers[0].mixers["mamba"]
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 0.1 * 1.001
    assert mixer.A_log.exp().min() * 1.001 >= 1
    assert mixer.A_log.exp().max() <= 16 * 1.001
    bound = 128**-0.5 / 4**0.5  # the default of a linear layer of 128 inputs, over sqrt(4 residuals)
    assert 0.9 * bound <= mixer.out_proj.weight.abs().max() <= bound


def test_a_single_layer_has_the_initialisation_of_a_first_layer():
    mixer = PublishedRwkv6(VOCAB_SIZE, 64, 1, Rwkv6Config(32, 4, 8)).layers[0].mixers["rwkv"]
    channel = torch.arange(64)
    torch.testing.assert_close(mixer.time_decay, -6 + 5 * (channel / 63) ** 0.7)
    torch.testing.assert_close(mixer.bonus.flatten(), ((channel + 1) % 3 - 1) * 0.1)
    assert all(parameter.isfinite().all() for parameter in mixer.parameters())
