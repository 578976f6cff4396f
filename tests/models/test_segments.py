"""Padding and packing: a document is read as if it were alone, wherever it stands. In fp64 unless it says otherwise."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import models.stack
from models import list_models
from models.config import Mamba2Config, Rwkv6Config
from models.protocol import State, StateError, capabilities
from models.published.gpt2 import PublishedGpt2
from models.published.mamba2 import PublishedMamba2
from models.published.rwkv6 import PublishedRwkv6
from models.segments import split_documents as split
from tests.models.conftest import VOCAB_SIZE, awake, wake

PUBLISHED = {
    "published RWKV-6": lambda: PublishedRwkv6(VOCAB_SIZE, 64, 2, Rwkv6Config(32, 8, 16)),
    "published Mamba-2": lambda: PublishedMamba2(VOCAB_SIZE, 64, 2, Mamba2Config(16, 32, num_groups=2)),
    "published GPT-2": lambda: PublishedGpt2(VOCAB_SIZE, 64, 2, 2, 40),
}
REGISTRY = [name for name in list_models() if name != "8M"]  # 8M is GF-MH, larger
MODELS = [*REGISTRY, *PUBLISHED]
GROWING = ("GPT2", "published GPT-2")
RECURRENT = [name for name in MODELS if name not in GROWING]
ONE_OF_EACH = ["GF-MH", "HGF", "SEQ-4R10M", "GPT2", *PUBLISHED]
LENGTH = 19
EXACT = 1e-10  # relative, fp64
SINGLE = 1e-5  # relative, fp32

# Rows as runs of (document, positions). The last documents of the rows of a layout are equally long.
CARRIED = ("both", "inside", "packed and padded")  # these are read from a carried state, the others from none
LAYOUTS = {
    "left": [[(0, 5), (1, 14)], [(0, 5), (1, 14)]],
    "right": [[(1, 14), (0, 5)], [(1, 14), (0, 5)]],
    "both": [[(0, 3), (1, 14), (0, 2)], [(0, 1), (8, 14), (0, 4)]],
    "inside": [[(1, 9), (0, 4), (1, 6)], [(0, 1), (2, 1), (0, 1), (2, 14), (0, 2)]],
    "packed": [[(3, 7), (1, 4), (2, 8)], [(1, 2), (7, 9), (2, 8)]],
    "packed and padded": [[(0, 2), (5, 6), (0, 1), (2, 5), (0, 1), (9, 4)], [(1, 1), (2, 10), (0, 2), (3, 4), (0, 2)]],
}
RAGGED = [[(1, 19)], [(2, 2), (0, 17)], [(0, 19)], [(0, 4), (6, 3), (1, 1), (0, 11)], [(4, 3), (0, 4), (5, 12)]]


@cache
def build(name: str, double: bool = True) -> nn.Module:
    """A model that no test of this file changes."""
    if name not in PUBLISHED:
        return awake(name, double)
    torch.manual_seed(0)
    model = wake(PUBLISHED[name]())
    return model.double() if double else model


def batch(layout):
    """Tokens and segments; the tokens at padding are none of the vocabulary."""
    segments = torch.stack([torch.cat([torch.full((n,), document) for document, n in row]) for row in layout])
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, VOCAB_SIZE, segments.shape, generator=generator)
    return torch.where(segments > 0, tokens, -100), segments


def carried_state(model, rows):
    """A state that three tokens a row left behind."""
    tokens = torch.randint(0, VOCAB_SIZE, (rows, 3), generator=torch.Generator().manual_seed(6))
    return model(tokens, return_states=True)[1]


def one_by_one(model, tokens_BT, segments_BT, state=None):
    """The same text, each document in a call of its own: logits, zero at padding, and the final state of each row."""
    rows, finals = [], []
    for row, (tokens_T, segments_T) in enumerate(zip(tokens_BT, segments_BT, strict=True)):
        logits_TV = next(model.parameters()).new_zeros(len(tokens_T), VOCAB_SIZE)
        final = given = None if state is None else state.rows([row])
        for document in dict.fromkeys(segments_T[segments_T > 0].tolist()):
            here = (segments_T == document).nonzero().squeeze(1)
            logits_1TV, final = model(tokens_T[here][None], given, return_states=True)
            logits_TV = logits_TV.index_copy(0, here, logits_1TV[0])
            given = None
        rows.append(logits_TV)
        finals.append(model.init_state(1) if final is None else final)
    return torch.stack(rows), finals


def relative(got, want):
    """Largest difference over largest value; infinite for what is not finite."""
    if not got.isfinite().all():
        return float("inf")
    difference = (got - want).abs().max().item() if got.numel() else 0.0
    return difference / max(want.abs().max().item() if want.numel() else 0.0, 1e-6)


def state_errors(state, finals):
    """Relative error of each tensor of a batch's state against the states of its rows."""
    rows = [dict(final.items()) for final in finals]
    return {path: relative(tensor, torch.cat([row[path] for row in rows])) for path, tensor in state.items()}


def errors(model, tokens_BT, segments_BT, state=None):
    """Relative errors of a packed pass against the documents one by one: of the logits, and of each state tensor."""
    logits_BTV, final = model(tokens_BT, state, return_states=True, segments=segments_BT)
    want_BTV, finals = one_by_one(model, tokens_BT, segments_BT, state)
    real_BT1 = (segments_BT > 0)[..., None]
    assert logits_BTV.isfinite().all()
    return relative(logits_BTV * real_BT1, want_BTV), state_errors(final, finals)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_are_read_as_if_alone(name, layout):
    model, (tokens_BT, segments_BT) = build(name), batch(LAYOUTS[layout])
    with torch.no_grad():
        state = carried_state(model, 2) if layout in CARRIED else None
        logits_error, of_state = errors(model, tokens_BT, segments_BT, state)
    assert logits_error <= EXACT
    assert max(of_state.values()) <= EXACT, of_state


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_agrees_too(name):
    model = build(name, double=False)
    with torch.no_grad():
        logits_error, of_state = errors(model, *batch(LAYOUTS["packed and padded"]), carried_state(model, 2))
    assert logits_error <= SINGLE
    assert max(of_state.values()) <= SINGLE, of_state


@pytest.mark.parametrize("name", RECURRENT)
def test_rows_may_end_at_different_lengths(name):
    model, (tokens_BT, segments_BT) = build(name), batch(RAGGED)
    with torch.no_grad():
        state = carried_state(model, len(RAGGED))
        logits_error, of_state = errors(model, tokens_BT, segments_BT, state)
        assert logits_error <= EXACT
        assert max(of_state.values()) <= EXACT, of_state
        _, final = model(tokens_BT, state, return_states=True, segments=segments_BT)
    before = dict(state.rows([2]).items())
    assert all(tensor.equal(before[path]) for path, tensor in final.rows([2]).items()), "row 2 is padding only"


@pytest.mark.parametrize("name", GROWING)
def test_a_state_that_grows_refuses_rows_of_different_lengths(name):
    model, (tokens_BT, segments_BT) = build(name), batch(RAGGED)
    with torch.no_grad():
        logits_BTV = model(tokens_BT, segments=segments_BT)
        want_BTV, _ = one_by_one(model, tokens_BT, segments_BT)
        assert relative(logits_BTV * (segments_BT > 0)[..., None], want_BTV) <= EXACT
        with pytest.raises(StateError, match=r"layers\.0\.attention\.k would hold 0 to 19 positions"):
            model(tokens_BT, return_states=True, segments=segments_BT)
        with pytest.raises(StateError, match="would hold 1 to 22 positions"):  # 19 and the 3 that came in
            model(tokens_BT, carried_state(model, 5), return_states=True, segments=segments_BT)


def readout(values):
    """A scalar that depends on every value."""
    return sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in values)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_packed_documents_equal_theirs_alone(name):
    model, (tokens_BT, segments_BT) = build(name), batch(LAYOUTS["packed and padded"])
    parameters = dict(model.named_parameters())
    state = carried_state(model, 2).requires_grad_()
    leaves = [*parameters.values(), *(tensor for _, tensor in state.items())]
    names = [*parameters, *(str(path) for path, _ in state.items())]
    logits_BTV, final = model(tokens_BT, state, return_states=True, segments=segments_BT)
    want_BTV, finals = one_by_one(model, tokens_BT, segments_BT, state)
    together = State.of(
        [
            {b: {k: torch.cat([f.layers[i][b][k] for f in finals]) for k in kinds} for b, kinds in layer.items()}
            for i, layer in enumerate(final.layers)
        ]
    )
    got = torch.autograd.grad(
        readout([logits_BTV * (segments_BT > 0)[..., None], *(t for _, t in final.items())]), leaves
    )
    want = torch.autograd.grad(readout([want_BTV, *(t for _, t in together.items())]), leaves)
    for leaf, left, right in zip(names, got, want, strict=True):
        scale = right.abs().max().item()
        assert (left - right).abs().max().item() <= EXACT * max(scale, 1), leaf
        assert scale > 0, f"{leaf} has no gradient: a blind test"


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_padded_text_can_be_read_in_two_calls(name):
    model = build(name)
    tokens_BT, segments_BT = batch([[(1, 19)]] * 3)
    with torch.no_grad():
        whole_BTV, whole = model(tokens_BT, return_states=True)
        wide_BT, wide_segments_BT = torch.full((3, 16), -100), torch.zeros(3, 16, dtype=torch.long)
        columns = torch.tensor([[1, 3, 4, 9, 10, 12, 15], [0, 1, 2, 3, 4, 5, 6], [9, 10, 11, 12, 13, 14, 15]])
        wide_BT.scatter_(1, columns, tokens_BT[:, :7])
        wide_segments_BT.scatter_(1, columns, 4)
        first_BSV, carried = model(wide_BT, return_states=True, segments=wide_segments_BT)
        second_BTV, final = model(tokens_BT[:, 7:], carried, return_states=True, segments=segments_BT[:, 7:])
    first_BTV = first_BSV.gather(1, columns[..., None].expand(-1, -1, VOCAB_SIZE))
    assert relative(torch.cat([first_BTV, second_BTV], dim=1), whole_BTV) <= EXACT
    assert max(state_errors(final, [whole]).values()) <= EXACT


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_activations_are_those_of_the_documents_alone(name):
    model, (tokens_BT, segments_BT) = build(name), batch(LAYOUTS["packed"])
    with torch.no_grad():
        state = carried_state(model, 2)
        plain, plain_state = model(tokens_BT, state, return_states=True, segments=segments_BT)
        logits_BTV, final, seen = model(
            tokens_BT, state, return_states=True, return_activations=True, segments=segments_BT
        )
        _, alone = model(tokens_BT[1:, 2:11], return_activations=True)  # document 7
    assert logits_BTV.equal(plain)
    assert all(tensor.equal(dict(plain_state.items())[path]) for path, tensor in final.items())
    assert len(final.gates) == len([layer for layer in alone.layers if layer.gate is not None])
    for layer, want in zip(seen.layers, alone.layers, strict=True):
        for got, expected in ((layer.writes, want.writes), (layer.decays, want.decays)):
            assert list(got) == list(expected)
            for branch, tensor in got.items():
                assert relative(tensor[1:, 2:11], expected[branch]) <= EXACT
        for branch, tensor in layer.innovations.items():
            assert relative(tensor[1:, 2:11], want.innovations[branch]) <= EXACT
        for tensor, expected in ((layer.gate, want.gate), (layer.gate_logits, want.gate_logits)):
            assert (tensor is None) == (expected is None)
            assert tensor is None or relative(tensor[1:, 2:11], expected) <= EXACT


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_padding_stays_finite_and_empty_batches_are_read(name):
    model, (tokens_BT, segments_BT) = build(name, double=False), batch(LAYOUTS["left"])
    logits_BTV, seen = model(tokens_BT, return_activations=True, segments=segments_BT)
    logits_BTV.sum().backward()  # padding included
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for layer in seen.layers:
        for tensor in (*layer.writes.values(), *layer.decays.values(), *layer.innovations.values()):
            assert not tensor[:, :5].any()
    with torch.no_grad():
        state = carried_state(model, 2)
        logits_BTV, final = model(tokens_BT, state, return_states=True, segments=torch.zeros_like(segments_BT))
        _, fresh = model(tokens_BT, return_states=True, segments=torch.zeros_like(segments_BT))
    assert logits_BTV.shape == (2, LENGTH, VOCAB_SIZE)
    assert logits_BTV.isfinite().all()
    assert all(tensor.equal(dict(state.items())[path]) for path, tensor in final.items())
    assert all(tensor.equal(dict(model.init_state(2).items())[path]) for path, tensor in fresh.items())


def test_long_states_stay_fp32_under_bf16_autocast():
    model, (tokens_BT, segments_BT) = build("GF-MH", double=False), batch(RAGGED)
    with torch.no_grad():
        exact, _ = one_by_one(model, tokens_BT, segments_BT)
        with torch.autocast("cpu", torch.bfloat16):
            logits_BTV, state = model(tokens_BT, return_states=True, segments=segments_BT)
            _, plain = model(tokens_BT.clamp(min=0), return_states=True)
    assert {path: t.dtype for path, t in state.items()} == {path: t.dtype for path, t in plain.items()}
    assert {t.dtype for path, t in state.items() if path.kind in ("wkv", "ssm")} == {torch.float32}
    assert relative(logits_BTV * (segments_BT > 0)[..., None], exact) <= 0.05


@pytest.mark.parametrize("name", MODELS)
def test_one_document_a_row_is_the_plain_pass_to_the_last_bit(name):
    model, (tokens_BT, segments_BT) = build(name, double=False), batch([[(1, 19)], [(4, 19)]])
    with torch.no_grad():
        plain, plain_state = model(tokens_BT, return_states=True)
        packed, state = model(tokens_BT, return_states=True, segments=segments_BT)
    assert packed.equal(plain)
    assert all(tensor.equal(dict(plain_state.items())[path]) for path, tensor in state.items())


def test_a_plain_pass_looks_at_no_segments(monkeypatch):
    model = build("GF-MH")

    def refuse(*_, **__):
        raise AssertionError("a plain pass needs none of this")

    for where in ("stack.split_documents", "blocks.rwkv6.padding_mask", "blocks.mamba2.padding_mask"):
        monkeypatch.setattr(f"models.{where}", refuse)
    tokens_BT, segments_BT = batch([[(1, 19)]])
    model(tokens_BT, return_states=True)
    with pytest.raises(AssertionError):
        model(tokens_BT, segments=segments_BT)


# --- the tests above can fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_document_that_does_not_reset_is_seen(name, monkeypatch):
    model, (tokens_BT, segments_BT) = build(name), batch(LAYOUTS["packed"])
    monkeypatch.setattr(
        models.stack,
        "split_documents",
        lambda segments, shape, carries: split(segments.clamp(max=1), shape, carries),
    )
    with torch.no_grad():
        leaky_BTV = model(tokens_BT, segments=segments_BT)
        want_BTV, _ = one_by_one(model, tokens_BT, segments_BT)
    error_BT = (leaky_BTV - want_BTV).abs().amax(dim=-1)
    assert error_BT[0, :7].max() <= EXACT  # the first document
    assert error_BT[0, 7:].min() > 1e-3
    assert error_BT[1, 2:].min() > 1e-3


def _newest(x_BTD, *_):
    return x_BTD[:, -1]


def _newest_three(x_BTC, *_):
    return x_BTC[:, -3:]


def _all_real(lengths_B, num_positions):
    return torch.zeros(len(lengths_B), num_positions, dtype=torch.bool)


@pytest.mark.parametrize(
    ("where", "broken", "kinds"),
    [
        ("rwkv6.padding_mask", _all_real, {"wkv"}),
        ("rwkv6.last_input", _newest, {"shift_att", "shift_ffn"}),
        ("mamba2.padding_mask", _all_real, {"ssm"}),
        ("mamba2.last_inputs", _newest_three, {"conv"}),
    ],
)
def test_padding_that_reaches_a_state_is_seen_in_that_state(where, broken, kinds, monkeypatch):
    monkeypatch.setattr(f"models.blocks.{where}", broken)
    for name in ("GF-MH", "published RWKV-6", "published Mamba-2"):
        model = build(name)
        with torch.no_grad():
            state = carried_state(model, len(RAGGED))
            logits_error, of_state = errors(model, *batch(RAGGED), state)
        assert logits_error <= EXACT  # padding stands on the right inside: logits cannot tell
        for path, error in of_state.items():
            assert error > 1e-3 if path.kind in kinds else error <= EXACT, path


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_state_given_to_later_documents_too_is_seen(name, monkeypatch):
    model, (tokens_BT, segments_BT) = build(name), batch([[(1, 5), (2, 14)], [(4, 7), (3, 12)]])
    monkeypatch.setattr(
        models.stack, "split_documents", lambda *args, **kw: [replace(p, carries=True) for p in split(*args, **kw)]
    )
    with torch.no_grad():
        state = carried_state(model, 2)
        wrong_BTV = model(tokens_BT, state, segments=segments_BT)
        want_BTV, _ = one_by_one(model, tokens_BT, segments_BT, state)
    error_BT = (wrong_BTV - want_BTV).abs().amax(dim=-1)
    for row, end in ((0, 5), (1, 7)):
        assert error_BT[row, :end].max() <= EXACT
        assert error_BT[row, end:].max() > 1e-2


# --- malformed segments ----------------------------------------------------------------------------------------------


def test_malformed_segments_are_refused():
    model, (tokens_BT, segments_BT) = build("WS"), batch(LAYOUTS["packed"])

    def refused(segments, message):
        with pytest.raises(ValueError, match=message):
            model(tokens_BT, segments=segments)

    refused(segments_BT[:1], r"shape \[1, 19\]; they must be \[2, 19\]")
    refused(segments_BT[:, :-1], r"shape \[2, 18\]; they must be \[2, 19\]")
    refused(segments_BT.int(), "are int32; they must be int64")
    refused(segments_BT > 0, "are bool; they must be int64")
    refused(segments_BT.double(), "are float64; they must be int64")
    negative = segments_BT.clone()
    negative[1, 4] = -2
    refused(negative, "hold -2 in row 1 at position 4")
    back = segments_BT.clone()
    back[1, 15] = 6
    refused(back, "document 2 comes back after another one in row 1")


def test_the_hook_is_read_from_the_signature():
    class Without(nn.Module):
        def forward(self, tokens_BT):
            return tokens_BT

    assert "segments" in capabilities(build("GPT2"))
    assert "segments" not in capabilities(Without())
