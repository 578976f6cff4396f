"""Round trips, repetitions and ways of reading, on a toy whose answers are known and on models of the registry."""

import math

import pytest
import torch

from harness.determinism import deterministic, repetitions
from harness.handoff import Passage, compare, hand_off, masked_hand_off
from harness.known_answers_handoff import LENGTH, Toy, toy_tokens
from harness.state_shapes import expected_state, grows, report_shapes
from harness.sufficiency import noise_like, round_trips, wake
from models import get_model
from models.protocol import State

VOCAB = 128
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module", params=["GF-MH", "GPT2"])
def model(request):
    torch.manual_seed(0)
    return wake(get_model(request.param, vocab_size=VOCAB)).eval()


@pytest.fixture
def tokens_BT():
    return torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(2))


def test_the_state_of_every_model_is_what_its_configuration_says(model, tokens_BT):
    specs = expected_state(model, 3)
    with torch.no_grad():
        _, state = model(tokens_BT, return_states=True)
    found = report_shapes(state, specs, LENGTH)
    assert not found.faults
    assert not found.low_precision
    assert found.bytes_error == 0
    assert not report_shapes(model.init_state(3), specs, 0).faults


@pytest.mark.parametrize("name", ["RWKV6", "MAMBA2", "SEQ-1R30M", "HGF"])
def test_the_first_state_of_other_models_too(name):
    model = get_model(name, vocab_size=VOCAB)
    assert not report_shapes(model.init_state(2), expected_state(model, 2), 0).faults


def test_a_configuration_is_not_overruled_by_a_wrong_first_state(model):
    wrong = model.init_state(3).map(lambda _, tensor: tensor[:, :-1])
    specs = expected_state(model, 3)
    assert len(report_shapes(wrong, specs, 0).faults) == len(specs)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_returned_state_continues_the_text_and_a_stand_in_does_not(model, tokens_BT, dtype):
    for trip in round_trips(model, tokens_BT, (1, 17, 64), dtype):
        assert trip.error <= TOLERANCE[dtype]
        assert trip.share <= 0.1
        assert trip.sees
    # of the last cut
    assert trip.kinds.keys() == {f"{path.branch}.{path.kind}" for path, _ in model.init_state(1).items()}
    assert min(trip.kinds.values()) > 0


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_way_of_reading_agrees(model, tokens_BT, dtype, tmp_path):
    found = hand_off(model, tokens_BT, tmp_path, dtype)
    assert len(found.agreements) == 5
    assert found.reload_error == 0
    assert found.worth > 1e-2
    for agreement in found.agreements:
        assert agreement.logits <= TOLERANCE[dtype], agreement
        assert agreement.state <= TOLERANCE[dtype], agreement
        # a single position may be off by more than all of them together, in bfloat16
        assert not agreement.first_state, agreement


class Coarse(Toy):
    """Logits that hardly hang on the text, off by 4e-3 under autocast, and by others in a pass of another length."""

    def forward(self, tokens_BT, state=None, return_states=False, segments=None):
        logits_BTV, final = super().forward(tokens_BT, state, return_states=True, segments=segments)
        logits_BTV = 1 + 0.03 * logits_BTV
        if torch.is_autocast_enabled("cpu"):
            generator = torch.Generator().manual_seed(tokens_BT.shape[1])
            logits_BTV = logits_BTV * (1 + 4e-3 * torch.randn(logits_BTV.shape, generator=generator))
        return (logits_BTV, final) if return_states else logits_BTV


def test_rounding_is_no_fault_of_the_state_and_hides_none(tmp_path):
    tokens_BT = toy_tokens()
    [trip] = round_trips(Coarse(), tokens_BT, (17,), torch.bfloat16)
    # beside what the state is worth the rounding alone is large
    assert trip.error / min(trip.zeroed, trip.proxy) > 0.2
    assert trip.sees
    assert trip.share <= 0.1
    found = hand_off(Coarse(), tokens_BT, tmp_path, torch.bfloat16)
    assert found.sees
    assert max(found.share(agreement) for agreement in found.agreements) <= 0.1
    for defect in ("proxy", "earlier"):
        [wrong] = round_trips(Coarse(defect), tokens_BT, (17,), torch.bfloat16)
        assert wrong.share > 0.2, defect
        broken = hand_off(Coarse(defect), tokens_BT, tmp_path, torch.bfloat16)
        assert max(broken.share(agreement) for agreement in broken.agreements) > 0.2, defect


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_model_without_numbers_has_no_good_share(dtype, tmp_path):
    class Lost(Toy):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            return (found[0] * math.nan, found[1]) if isinstance(found, tuple) else found * math.nan

    [trip] = round_trips(Lost(), toy_tokens(), (17,), dtype)
    assert math.isnan(trip.error)
    assert not trip.sees
    found = hand_off(Lost(), toy_tokens(), tmp_path, dtype)
    # it goes on to be judged, and no limit passes NaN
    assert found.sees
    assert all(math.isnan(found.share(agreement)) for agreement in found.agreements)


@pytest.mark.parametrize("change", [lambda t: t.bfloat16(), lambda t: t + 1e-6], ids=["dtype", "value"])
def test_a_file_that_changes_a_state_shows(change, tmp_path, monkeypatch):
    load = State.load
    monkeypatch.setattr(State, "load", lambda path: load(path).map(lambda _, tensor: change(tensor)))
    assert hand_off(Toy(), toy_tokens(), tmp_path).reload_error > 0


def test_padding_and_packing_agree_with_each_document_alone(model, tokens_BT):
    for agreement in masked_hand_off(model, tokens_BT):
        assert agreement.logits <= 1e-5, agreement
        assert agreement.state <= 1e-5, agreement
        assert agreement.unmasked > 1e-2, agreement


def test_only_attention_grows(model, tokens_BT):
    kinds = {(path.branch, path.kind) for path, _ in model.init_state(1).items()}
    assert grows(model, tokens_BT) == {kind for kind in kinds if kind[0] == "attention"}


def test_waking_a_model_touches_only_what_is_zero():
    torch.manual_seed(0)
    model = get_model("RWKV6", vocab_size=VOCAB)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wake(model)
    silent = [name for name, p in before.items() if not p.any()]
    assert any(name.endswith("output.weight") for name in silent)
    for name, parameter in model.named_parameters():
        assert parameter.any()
        assert torch.equal(parameter, before[name]) == (name not in silent)


def test_noise_has_the_sizes_of_the_state_and_nothing_else_of_it():
    state = Toy()(toy_tokens(), return_states=True)[1].detach()
    noise = noise_like(state)
    for (path, tensor), (other, found) in zip(state.items(), noise.items(), strict=True):
        assert (path, tensor.shape, tensor.dtype) == (other, found.shape, found.dtype)
        assert 0.3 < float(found.norm() / tensor.norm()) < 3


def test_passes_over_a_registry_model_repeat_their_bits(model, tokens_BT):
    assert [again.identical for again in repetitions(model, tokens_BT, 2)] == [True, True]


def test_unwritten_memory_is_full_of_nan_inside_and_the_mode_is_as_before_outside():
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    with deterministic():
        assert torch.empty(7).isnan().all()
    assert (torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory) == before


def _passage(logits_TV: torch.Tensor, *kinds: torch.Tensor) -> Passage:
    return Passage((logits_TV,), (State.of([{"b": {f"k{i}": kind}} for i, kind in enumerate(kinds)]),))


def test_what_differs_first_is_named():
    logits, first, second = torch.ones(6, 3), torch.ones(1, 4), torch.ones(1, 4)
    expected = _passage(logits, first, second)
    changed = logits.clone()
    changed[4:] += 0.1
    found = compare("way", _passage(changed, first, 2 * second), expected, 1e-5)
    assert (found.first_state, found.first_position) == ("layers.1.b.k1", 4)
    assert (found.worst, found.state) == ("layers.1.b.k1", 1.0)
    assert found.note == "differs: first state layers.1.b.k1, first position 4"
    assert compare("way", expected, expected, 1e-5).note == ""


def test_another_tree_or_shape_or_a_nan_never_agrees():
    expected = _passage(torch.ones(2, 3), torch.ones(1, 4))
    assert compare("way", _passage(torch.ones(2, 3)), expected, 1e-5).state == math.inf
    assert compare("way", _passage(torch.ones(2, 3), torch.ones(1, 5)), expected, 1e-5).state == math.inf
    poisoned = compare("way", _passage(torch.full((2, 3), math.nan), torch.full((1, 4), math.nan)), expected, 1e-5)
    assert math.isnan(poisoned.logits)
    assert math.isnan(poisoned.state)
    assert (poisoned.first_state, poisoned.first_position) == ("layers.0.b.k0", 0)
