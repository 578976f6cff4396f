"""Sizes of states against their writes, and distances between them, on models whose answers can be worked out."""

import math

import numpy as np
import pytest
import torch

from harness import state_size
from harness.data import Split, Windows
from harness.state_size import Magnitude, different_documents, measure_magnitudes, measure_motions
from harness.sufficiency import wake
from models import get_model
from models.protocol import Activations, LayerActivations, State

VOCAB = 64


def _windows(count: int, length: int, documents: int = 4) -> Windows:
    tokens = np.random.default_rng(0).integers(0, VOCAB, count * (length + 1) + 1).astype(np.uint16)
    starts = np.arange(count, dtype=np.int64) * (length + 1)
    return Windows(Split(tokens, np.array([0, len(tokens)]), ("all",), 0), length, starts, np.arange(count) % documents)


class Accumulator(torch.nn.Module):
    """S_t = gain w S_{t-1} + a random matrix of each token, while it reports a decay of w."""

    def __init__(self, decay: float, gain: float = 1.0, reports: bool = True) -> None:
        super().__init__()
        self.decay, self.gain, self.reports = decay, gain, reports
        drawn = torch.randn(VOCAB, 2, 16, 16, generator=torch.Generator().manual_seed(3))
        # tokens come back: only writes of mean zero are independent then
        self.weight_VHKK = torch.nn.Parameter(drawn - drawn.mean(0))

    def forward(self, tokens_BT, state=None, return_states=False, return_activations=False):
        held = state.layers[0]["toy"]["sum"] if state else torch.zeros(len(tokens_BT), 2, 16, 16)
        innovations = []
        for t in range(tokens_BT.shape[1]):
            write = self.weight_VHKK[tokens_BT[:, t]]
            held = self.gain * self.decay * held + write
            innovations.append(write.norm(dim=(-2, -1)) / held.norm(dim=(-2, -1)))
        logits = torch.zeros(*tokens_BT.shape, VOCAB)
        iota = torch.stack(innovations, 1)
        seen = {"toy": iota} if self.reports else {}
        acts = Activations((LayerActivations({}, {"toy": torch.full_like(iota, self.decay)}, seen),))
        outputs = (logits, State.of([{"toy": {"sum": held}}]), acts)
        return outputs if return_activations else outputs[:2]


@pytest.mark.parametrize("decay", [0.3, 0.9, 1.0])
def test_independent_writes_have_ratio_one_at_every_decay(decay):
    found = measure_magnitudes(Accumulator(decay), _windows(24, 48), device="cpu")
    assert [size.position for size in found.found] == [32, 48]
    for size in found.found:
        assert size.ratios == pytest.approx([1.0, 1.0], abs=0.15)
        assert (size.non_finite, size.zero_heads) == (0, 0)
    assert (found.num_windows, found.num_documents) == (24, 4)


def test_a_state_that_grows_behind_its_decays_shows():
    sound, growing = (
        measure_magnitudes(Accumulator(0.9, gain), _windows(8, 48), device="cpu").found[-1] for gain in (1.0, 1.25)
    )
    assert growing.ratios[0] > 10 * sound.ratios[0]


def test_no_innovations_no_ratio():
    assert all(
        size.ratios is None and not size.cache
        for size in measure_magnitudes(Accumulator(0.9, reports=False), _windows(4, 48), device="cpu").found
    )


def test_a_cache_has_a_size_and_no_ratio():
    torch.manual_seed(0)
    model = get_model("GPT2", vocab_size=VOCAB)
    found = measure_magnitudes(model, _windows(4, 48), device="cpu").found
    assert found
    assert all(size.cache and size.ratios is None and len(size.rms) == 4 for size in found)


def test_batches_do_not_change_the_sizes(monkeypatch):
    torch.manual_seed(0)
    model = wake(get_model("GF-MH", vocab_size=VOCAB))
    one = measure_magnitudes(model, _windows(6, 40), device="cpu").found
    monkeypatch.setattr(state_size, "BATCH", 4)
    many = measure_magnitudes(model, _windows(6, 40), device="cpu").found
    for a, b in zip(one, many, strict=True):
        assert a.ratios == pytest.approx(b.ratios, rel=1e-4)
        assert a.rms == pytest.approx(b.rms, rel=1e-4)


def test_the_head_furthest_from_one_is_named():
    def head(*ratios: float) -> int:
        return Magnitude(0, "b", "k", 32, list(ratios), False, [], 1.0, 0, 0).extreme_head

    assert head(2.0, 0.1, 5.0) == 1
    assert head(2.0, 0.3, 5.0) == 2
    assert head(2.0, math.nan, 5.0) == 1
    assert head(2.0, 100.0, 0.0) == 2


def test_texts_drive_states_apart_and_an_edit_fades_with_its_distance():
    forgetful = measure_motions(Accumulator(0.5), _windows(8, 48), device="cpu", vocab_size=VOCAB, seed=0).found[0]
    assert forgetful.pairs.value == pytest.approx(math.sqrt(2), abs=0.2)
    assert forgetful.edit.value > 1.0
    assert 0 < forgetful.early_edit.value < 1e-3 * forgetful.edit.value
    keeping = measure_motions(Accumulator(1.0), _windows(8, 48), device="cpu", vocab_size=VOCAB, seed=0).found[0]
    assert keeping.early_edit.value == pytest.approx(keeping.edit.value, rel=0.3)
    assert (keeping.pairs.n, keeping.pairs.n_clusters) == (8, 4)


def test_a_state_that_ignores_the_text_has_no_distance():
    model = Accumulator(0.9)
    with torch.no_grad():
        model.weight_VHKK.copy_(model.weight_VHKK[:1].expand_as(model.weight_VHKK))
    motion = measure_motions(model, _windows(8, 48), device="cpu", vocab_size=VOCAB, seed=0).found[0]
    assert (motion.pairs.value, motion.edit.value) == (0, 0)


@pytest.mark.parametrize("documents", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 2]])
def test_partners_are_of_other_documents_each_once(documents):
    labels = np.array(documents)
    partners = different_documents(labels)
    assert sorted(partners) == list(range(len(documents)))
    assert (labels != labels[partners]).all()


def test_one_document_has_no_partners():
    assert different_documents(np.zeros(4, np.int64)) is None
    assert not measure_motions(
        Accumulator(0.9), _windows(4, 48, documents=1), device="cpu", vocab_size=VOCAB, seed=0
    ).found
