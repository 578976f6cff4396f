"""Coupling of gradient and state, on a model small enough to differentiate by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from harness.coupling import Text, head_products, measure_coupling
from harness.data import Split, Windows
from harness.known_answers import _registry
from harness.metrics import coupling, known_answers_coupling
from harness.metrics.dominance import disagreement, dominant
from harness.metrics.intervals import Interval
from models.protocol import State

VOCAB = 7


class Leaky(nn.Module):
    """Two leaky sums of embedded tokens, matrices of two heads; ``scale`` enlarges the first, its readout undoes it."""

    branches = ("left", "right")

    def __init__(self, *, scale: float = 1.0, right: float = 1.0, cut: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.embed = nn.Parameter(torch.randn(VOCAB, 2, 3, 2, generator=generator, dtype=torch.float64))
        self.read = nn.Parameter(torch.randn(2, 12, VOCAB, generator=generator, dtype=torch.float64) / 40)
        self.scale, self.right, self.cut = scale, right, cut

    def forward(self, tokens, state=None, return_states=False):
        if state is None:
            zeros = torch.zeros(len(tokens), 2, 3, 2, dtype=torch.float64)
            state = State.of([{"left": {"sum": zeros}, "right": {"sum": zeros}}])
        left, right = (state.layers[0][branch]["sum"] for branch in self.branches)
        if self.cut:
            right = right.detach()
        logits = []
        for t in range(tokens.shape[1]):
            written = self.embed[tokens[:, t]]
            left, right = 0.95 * left + self.scale * written, 0.9 * right + written.flip(1)
            seen = left.flatten(1) @ self.read[0] / self.scale + self.right * right.flatten(1) @ self.read[1]
            logits.append(seen)
        state = State.of([{"left": {"sum": left}, "right": {"sum": right}}])
        return (torch.stack(logits, 1), state) if return_states else torch.stack(logits, 1)


def windows(documents=24, length=32):
    tokens = np.random.default_rng(8).integers(0, VOCAB, documents * (length + 1)).astype(np.uint16)
    offsets = np.arange(documents + 1, dtype=np.int64) * (length + 1)
    return Windows.of(Split(tokens, offsets, tuple(map(str, range(documents))), 0), length, documents)


def measure(**options):
    return measure_coupling(Leaky(**options), windows(), device="cpu", seed=1)


@pytest.fixture(scope="module")
def healthy():
    return measure()


def test_gradients_of_a_state_are_those_of_finite_differences():
    model = Leaky()
    tokens = torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(3))
    _, state = model(tokens[:, :8], return_states=True)
    state = state.detach()
    text = Text(model, tokens[:, 8:12], tokens[:, 9:13])
    other = state.rows([1, 2, 0])
    products = head_products(text.gradients(state), state, other)

    step = 1e-6
    for branch in model.branches:
        for head in range(2):
            moved = dict(other.items())

            def nudged(path, tensor, sign, branch=branch, head=head, moved=moved):
                if path.branch != branch:
                    return tensor
                change = torch.zeros_like(tensor)
                change[:, head] = sign * step * (moved[path] - tensor)[:, head]
                return tensor + change

            up = text.loss(state.map(lambda path, tensor: nudged(path, tensor, +1)))
            down = text.loss(state.map(lambda path, tensor: nudged(path, tensor, -1)))
            assert products[0, branch][:, head].tolist() == pytest.approx(((up - down) / (2 * step)).tolist(), rel=1e-5)


def test_the_first_order_agrees_with_the_exchange_where_it_should(healthy):
    assert healthy.agreement > 0.9
    assert healthy.distortion < 1.3
    assert not healthy.invalid
    for branch in healthy.branches:
        assert healthy.strength[branch].value == pytest.approx(healthy.true[branch], rel=0.3)
    assert sum(share.value for share in healthy.shares.values()) == pytest.approx(1)


def test_a_state_that_is_larger_and_read_more_weakly_couples_as_before(healthy):
    enlarged = measure(scale=1024.0)
    assert enlarged.strength == healthy.strength
    assert enlarged.ratio == healthy.ratio


def test_a_branch_that_is_hardly_read_couples_weakly(healthy):
    found = measure(right=0.1)
    assert found.strength["right"].value < 0.3 * healthy.strength["right"].value
    assert found.ratio.value > 5
    assert dominant(found.shares) == "left"


def test_a_cut_gradient_is_a_dead_branch_and_not_an_invalid_measurement():
    found = measure(cut=True)
    assert found.strength["right"].value == 0
    assert found.true["right"] > 0
    assert found.shares["right"].value == 0
    assert not found.invalid


def test_the_measurement_leaves_the_model_as_it_was():
    model = Leaky().train()
    measure_coupling(model, windows(), device="cpu", seed=1)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_first_order_that_misleads_is_invalid(healthy):
    assert "rank" in dataclasses.replace(healthy, agreement=0.5).invalid
    assert "rank" in dataclasses.replace(healthy, agreement=float("nan")).invalid
    assert "factor" in dataclasses.replace(healthy, distortion=2.5).invalid


def _failures(known):
    failed = 0
    for entry in list(_registry.values()):
        if entry.function.__module__ == known.__name__:
            try:
                entry.function()
            except AssertionError:
                failed += 1
    return failed


true_mean_square, true_compare = coupling.mean_square, coupling.compare

BROKEN = [
    ("mean_square", lambda products, documents: true_mean_square(np.abs(products) + 1, documents)),
    ("mean_square", lambda products, documents: true_mean_square(np.sqrt(2) * np.asarray(products), documents)),
    ("compare", lambda first, second, seed: true_compare(second, first, seed=seed)),
    ("rank_agreement", lambda predicted, true: 1.0),
    ("rank_agreement", lambda predicted, true: float(np.corrcoef(np.abs(predicted), np.abs(true))[0, 1])),
    ("distortion", lambda linear, true: linear[0] / linear[1]),
]


@pytest.mark.parametrize(("name", "broken"), BROKEN, ids=[f"{row[0]}-{i}" for i, row in enumerate(BROKEN)])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_broken_metric_fails_its_known_answers(monkeypatch, name, broken):
    assert _failures(known_answers_coupling) == 0
    monkeypatch.setattr(coupling, name, broken)
    assert _failures(known_answers_coupling) >= 1


def test_measures_disagree_only_where_two_of_them_name_a_branch():
    def shares(low, high):
        middle = (low + high) / 2
        return {"left": Interval(middle, low, high, 9, 9), "right": Interval(1 - middle, 1 - high, 1 - low, 9, 9)}

    left, right, open_ = shares(0.6, 0.8), shares(0.1, 0.3), shares(0.4, 0.7)
    assert disagreement({"INFO": left, "COUPLING": left, "D3": None}) == ""
    assert disagreement({"INFO": left, "COUPLING": open_}) == ""
    assert disagreement({"INFO": left, "COUPLING": right}) == "left dominates by INFO; right dominates by COUPLING"
