"""Known answers of the remedies of FIX: a gradient is clipped where a row is cut and nowhere else; unequal writes cost.

On a toy in fp64, beside the same sums written down by hand.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.config import TrainConfig
from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.remedies import Treatment, clip_rows, write_gap
from models.fusion.base import Fused, Fusion
from models.protocol import State

VOCAB, WIDTH, ROWS, LENGTH = 7, 3, 4, 6
EXACT = 1e-12


class Sum(Fusion):
    """Both outputs as they are."""

    def forward(self, rwkv_BTD: Tensor, mamba_BTD: Tensor) -> Fused:
        """The writes are the outputs."""
        return Fused(rwkv_BTD, mamba_BTD)


class Leaky(nn.Module):
    """Two branches of one layer add up what they read, ``S_t = a S_{t-1} + W x_t``, and write their state; fp64."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(4)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=drawn, dtype=torch.float64))

        self.embedding, self.head = random(VOCAB, WIDTH), random(WIDTH, VOCAB)
        self.rwkv, self.mamba = random(WIDTH, WIDTH), nn.Parameter(0.1 * random(WIDTH, WIDTH).detach())
        self.fusion = Sum()

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Logits, and the state on request."""
        x_BTD = self.embedding[tokens_BT]
        outputs, kept = {}, {}
        for branch, kind, decay in (("rwkv", "wkv", 0.9), ("mamba", "ssm", 0.5)):
            state_BD = torch.zeros_like(x_BTD[:, 0]) if state is None else state.layers[0][branch][kind]
            states = []
            for t in range(tokens_BT.shape[1]):
                state_BD = decay * state_BD + x_BTD[:, t] @ getattr(self, branch)
                states.append(state_BD)
            outputs[branch], kept[branch] = torch.stack(states, 1), {kind: state_BD}
        fused = self.fusion(outputs["rwkv"], outputs["mamba"])
        logits_BTV = (fused.rwkv + fused.mamba) @ self.head
        return (logits_BTV, State.of([kept])) if return_states else logits_BTV


def _text() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    return tokens[:, :-1], tokens[:, 1:]


def _loss(logits_BTV: Tensor, targets_BT: Tensor, of: str = "mean") -> Tensor:
    return cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction=of)


def _treated_gradients(treatment: Treatment) -> list[Tensor]:
    """Gradients of all weights of a toy under a treatment, in one update of one batch."""
    inputs, targets = _text()
    loss = treatment.add_to(_loss(treatment.read(inputs), targets))
    return list(torch.autograd.grad(loss, list(treatment.model.parameters())))


def _by_hand(model: nn.Module, limit: float) -> tuple[list[Tensor], list[float]]:
    """The same gradients with the chain rule cut in two by hand, and the norms at the cut of a row's own mean loss."""
    (inputs, targets), cut, weights = _text(), LENGTH // 2, list(model.parameters())
    first, reached = model(inputs[:, :cut], None, return_states=True)
    leaves = [tensor.detach().requires_grad_() for _, tensor in reached.items()]
    found = iter(leaves)
    second, _ = model(inputs[:, cut:], reached.map(lambda *_: next(found)), return_states=True)
    total = ROWS * LENGTH
    late = _loss(second, targets[:, cut:], "sum") / total
    of_late = torch.autograd.grad(late, [*weights, *leaves])
    crossing, norms = [], []
    for grad_BD in of_late[len(weights) :]:
        norm_B = ROWS * grad_BD.square().sum(1).sqrt()
        norms += norm_B.tolist()
        crossing.append(grad_BD * (limit / norm_B).clamp(max=1.0)[:, None])
    early = _loss(first, targets[:, :cut], "sum") / total
    carried = [tensor for _, tensor in reached.items()]
    of_early = torch.autograd.grad([early, *carried], weights, [torch.ones_like(early), *crossing])
    return [a + b for a, b in zip(of_early, of_late, strict=False)], norms


def _distance(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


@known_answer("FIX")
def what_crosses_the_cut_is_clipped_and_nothing_else() -> None:
    """Against the chain rule by hand: below the limit the gradients are those of the whole row, above they are not."""
    model = Leaky()
    _, norms = _by_hand(model, math.inf)
    limit = sorted(norms)[len(norms) // 2]
    plain = list(torch.autograd.grad(_loss(model(_text()[0]), _text()[1]), list(model.parameters())))
    for name, at, over in (("above all norms", 2 * max(norms), 0), ("in their midst", limit * (1 - 1e-9), None)):
        treatment = Treatment(model, TrainConfig(state_grad_clip=at))
        found = _treated_gradients(treatment)
        expect(f"limit {name}: distance from the chain rule", _distance(found, _by_hand(model, at)[0]), 0.0, EXACT)
        expected = sum(norm > at for norm in norms) / len(norms) if over is None else over
        expect(f"limit {name}: share that is shortened", float(treatment.report()[0]), expected, 1e-6)
        if over == 0:
            expect("distance from the whole row", _distance(found, plain), 0.0, EXACT)
        else:
            expect_between("distance from the whole row", _distance(found, plain), 1e-4, math.inf)


@known_answer("FIX")
def a_row_is_shortened_to_the_limit_and_keeps_its_direction() -> None:
    """Above the limit a row has exactly its norm, below it keeps every bit, and what is not finite stays so."""
    grad_BD = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    grad_BD[0] *= 100 / grad_BD[0].norm()
    grad_BD[1] *= 0.5 / grad_BD[1].norm()
    grad_BD[2] = 0.0
    grad_BD[3, 0, 0] = math.nan
    seen = torch.zeros(2, dtype=torch.int64)
    leaf = torch.zeros_like(grad_BD, requires_grad=True)
    clip_rows(leaf, 1.0, seen).backward(grad_BD)  # type: ignore[no-untyped-call]
    found = leaf.grad
    assert found is not None
    expect("norm of a long row", float(found[0].norm()), 1.0, EXACT)
    expect("distance from its direction", float((found[0] - grad_BD[0] / 100).abs().max()), 0.0, EXACT)
    expect("a short row keeps its bits", float(torch.equal(found[1], grad_BD[1])), 1)
    expect("a row of zeros", float(found[2].abs().max()), 0.0)
    expect("a row that is not finite", float(found[3].flatten()[0]), math.nan)
    expect("rows", int(seen[1]), 5)


@known_answer("FIX")
def writes_cost_the_square_of_their_log_ratio() -> None:
    """Ten to one costs (ln 10)^2 whatever the unit; equal writes cost nothing; the gradient is that of differences."""
    ten, one = torch.tensor(100.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    # the floor takes off 1e-4 of it
    expect("gap of ten to one", float(write_gap(ten, one)), math.log(10) ** 2, 1e-3)
    scaled = float(write_gap(7e-6 * ten, 7e-6 * one))
    expect("the same in another unit", scaled, float(write_gap(ten, one)), EXACT)
    expect("the other way round", float(write_gap(one, ten)), float(write_gap(ten, one)), EXACT)
    zero = torch.zeros((), dtype=torch.float64)
    # negative controls: equal writes, and none at all
    expect("equal writes", float(write_gap(ten, ten)), 0.0)
    expect("no writes", float(write_gap(zero, zero)), 0.0)
    expect_between("gap of a silent branch", float(write_gap(zero, one)), math.log(999) ** 2, math.log(1001) ** 2)
    model = Leaky()
    treatment = Treatment(model, TrainConfig(coupling_loss=0.3))
    gradients = dict(zip(dict(model.named_parameters()), _treated_gradients(treatment), strict=True))
    for name in ("embedding", "rwkv", "mamba"):
        weight, step = dict(model.named_parameters())[name], 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[1, 1] += sign * step
                ends.append(_treated_loss(model))
                weight[1, 1] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        expect(f"gradient of {name} against finite differences", float(gradients[name][1, 1]), slope, 1e-7)


def _treated_loss(model: Leaky) -> float:
    """Cross entropy and three tenths of the gap, from the states that the toy writes, by hand."""
    inputs, targets = _text()
    x_BTD, writes = model.embedding[inputs], []
    for weight, decay in ((model.rwkv, 0.9), (model.mamba, 0.5)):
        read_BTD = x_BTD @ weight
        ages = torch.arange(LENGTH)
        kernel_TT = torch.where(ages[:, None] >= ages, decay ** (ages[:, None] - ages).clamp(min=0).double(), 0.0)
        writes.append(torch.einsum("tu,bud->btd", kernel_TT, read_BTD))
    logits = (writes[0] + writes[1]) @ model.head
    rms = [float(write.square().mean().sqrt()) for write in writes]
    # with the floor on both
    floor = 1e-6 * (rms[0] ** 2 + rms[1] ** 2)
    gap = (0.5 * math.log((rms[0] ** 2 + floor) / (rms[1] ** 2 + floor))) ** 2
    return float(_loss(logits, targets)) + 0.3 * gap
