"""Known answers of D3, S4 and BALANCE: toys that keep the answer in one branch, or half of it in each."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from harness.ablation import Continuation, continue_from, donors, mean_state, states_at, swap, zero_state
from harness.known_answers import known_answer
from harness.metrics.balance import Moments
from harness.metrics.expect import expect, expect_between
from harness.metrics.interaction import divergences, interaction, loss_shares
from harness.metrics.intervals import ClusterRatio
from models.protocol import State

# the odds of the right answer: a certainty would make the loss after a wrong swap infinite
CERTAINTY = 1 - 1e-6
ROWS, BOUNDARY = 64, 6


class BitKeeper(nn.Module):
    """Two branches, ``first`` and ``second``, keep the first and second token, a bit each; vocabulary {0, 1}.

    After the second token the model says ``answer(first bit, second bit)`` with probability 1 - 1e-6, whatever it
    reads. Contents are -1 and 1; the states before the first token, and of an ablation by zero, are 0: an unknown bit
    leaves both answers equal. Kind ``conv`` of the second branch holds the last token, a short state that says nothing.
    """

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Logits ``[B, T, 2]``: zero until both bits are known."""
        if state is None:
            signs_BT = 2.0 * tokens_BT.double() - 1
            first_B1, second_B1 = signs_BT[:, :1], signs_BT[:, 1:2]
        else:
            first_B1, second_B1 = state.layers[0]["first"]["bit"], state.layers[0]["second"]["bit"]
        half = 0.5 * math.log(CERTAINTY / (1 - CERTAINTY)) * self.answer(first_B1, second_B1)
        logits_BT2 = torch.stack([-half, half], -1).expand(-1, tokens_BT.shape[1], -1)
        if not return_states:
            return logits_BT2
        kept = {"first": {"bit": first_B1}, "second": {"bit": second_B1, "conv": tokens_BT[:, -1:].double()}}
        return logits_BT2, State.of([kept])


def _first(first: Tensor, _: Tensor) -> Tensor:
    return first


def _exclusive_or(first: Tensor, second: Tensor) -> Tensor:
    return -first * second


def _either(first: Tensor, second: Tensor) -> Tensor:
    return torch.sign(first + second)


INDEPENDENT_n2 = torch.tensor([[row // 2 % 2, row % 2] for row in range(ROWS)])
EQUAL_n2 = torch.tensor([[row % 2, row % 2] for row in range(ROWS)])
Ablations = Callable[[State], dict[str, State]]


def _experiment(answer: Callable[[Tensor, Tensor], Tensor], bits_n2: Tensor, ablations: Ablations) -> Continuation:
    """A toy that has read two bits and some text, its state ablated, asked twice for the answer."""
    tokens_nT = torch.cat([bits_n2, torch.zeros(ROWS, BOUNDARY, dtype=torch.int64)], 1)
    signs_n2 = 2.0 * bits_n2.double() - 1
    targets_nh = (answer(signs_n2[:, :1], signs_n2[:, 1:]) > 0).long().expand(-1, 2)
    model = BitKeeper(answer)
    (state,) = states_at(model, tokens_nT, [BOUNDARY], 16)
    return continue_from(model, state, ablations(state), tokens_nT[:, BOUNDARY : BOUNDARY + 2], targets_nh, 16)


def _forgotten(answer: Callable[[Tensor, Tensor], Tensor], bits_n2: Tensor) -> tuple[dict[str, ClusterRatio], float]:
    """What each branch costs when its bit is forgotten, and the interaction of the two."""

    def ablations(state: State) -> dict[str, State]:
        none = zero_state(state)
        single = {branch: swap(state, none, branch) for branch in ("first", "second")}
        return {**single, "both": swap(state, none, state.branches)}

    found = _experiment(answer, bits_n2, ablations)
    effects = {branch: _delta(found, branch) for branch in ("first", "second")}
    return effects, interaction(effects, _delta(found, "both")).value


def _delta(found: Continuation, name: str) -> ClusterRatio:
    delta_n = (found.ce[name] - found.clean_ce).mean(1).numpy()
    return ClusterRatio.of(delta_n, np.ones(ROWS), np.arange(ROWS))


@known_answer("D3", "S4", "BALANCE")
def an_answer_kept_in_one_branch_is_lost_with_it() -> None:
    """Answer = the bit of the first branch. Forgotten: ln 2, its entropy; the second branch costs exactly nothing."""

    def ablations(state: State) -> dict[str, State]:
        # rows whose bits, first or second, are the opposite
        other_first, other_second = (state.rows([row ^ flip for row in range(ROWS)]) for flip in (2, 1))
        return {
            "zero": swap(state, zero_state(state), "first"),
            "mean": swap(state, mean_state(state), "first"),
            "first": swap(state, other_first, "first"),
            "second": swap(state, other_second, "second", "all"),
            "self": swap(state, state.rows(list(range(ROWS))), state.branches, "all"),
        }

    found = _experiment(_first, INDEPENDENT_n2, ablations)
    expect("loss of the answer forgotten (zero)", _delta(found, "zero").value, math.log(2), 1e-5)
    expect("loss of the answer forgotten (mean)", _delta(found, "mean").value, math.log(2), 1e-5)
    # every row is given the wrong bit: the loss is ln of the odds
    expect("loss of the answer inverted", _delta(found, "first").value, math.log(CERTAINTY / (1 - CERTAINTY)), 1e-9)
    expect("loss without the second branch", _delta(found, "second").value, 0.0)
    expect("KL without the second branch", float(found.kl["second"].abs().max()), 0.0)
    expect("KL of a swap with itself", float(found.kl["self"].abs().max()), 0.0)
    expect("loss of a swap with itself", float((found.ce["self"] - found.clean_ce).abs().max()), 0.0)
    # negative control: the branch that holds the answer must not look inactive
    expect_between("KL without the first branch", float(found.kl["first"].min()), 1.0, math.inf)


@known_answer("D3")
def what_two_branches_hold_together_is_an_interaction() -> None:
    """Half of the answer in each: -ln 2. The whole answer in both: ln 2. An idle branch interacts with nothing."""
    effects, together = _forgotten(_exclusive_or, INDEPENDENT_n2)
    expect("loss of the first half", effects["first"].value, math.log(2), 1e-5)
    expect("loss of the second half", effects["second"].value, math.log(2), 1e-5)
    expect("interaction of two halves", together, -math.log(2), 1e-5)
    expect("share of a half", loss_shares(effects)["first"].value, 0.5, 1e-9)
    spare, redundancy = _forgotten(_either, EQUAL_n2)
    expect("loss of one copy of two", spare["first"].value, 0.0, 1e-9)
    expect("interaction of two copies", redundancy, math.log(2), 1e-5)
    alone, none = _forgotten(_first, INDEPENDENT_n2)
    expect("interaction with an idle branch (negative control)", none, 0.0, 1e-12)
    expect("loss share of an idle branch", loss_shares(alone)["second"].value, 0.0)


@known_answer("D3", "S4")
def the_divergence_is_exact_where_it_is_small() -> None:
    """Against the textbook sum in float64, also when it is 1e-9 and the logits are float32; impossible words are."""
    generator = torch.Generator().manual_seed(31)
    clean, step = torch.randn(2, 40, 999, generator=generator, dtype=torch.float64)
    for size in (1e-4, 1e-1, 30.0):
        logp, logq = clean.log_softmax(-1), (clean + size * step).log_softmax(-1)
        textbook = float((logp.exp() * (logp - logq)).sum(-1).mean())
        expect(f"KL at a step of {size:g}", float(divergences(logp, logq).mean()) / textbook, 1.0, 1e-6)
        single = (clean.float().log_softmax(-1), (clean + size * step).float().log_softmax(-1))
        expect(f"KL at a step of {size:g} in float32", float(divergences(*single).mean()) / textbook, 1.0, 1e-2)
    even, sure = torch.full((1, 2), -math.log(2)), torch.tensor([[0.0, -math.inf]])
    expect("KL of a sure coin from an even one", float(divergences(sure, even)), math.log(2), 1e-6)
    assert math.isinf(float(divergences(even, sure))), "what was possible and is no more is infinitely far"
    expect("KL of a sure coin from itself", float(divergences(sure, sure)), 0.0)


@known_answer("D3", "S4")
def a_donor_is_another_document() -> None:
    """Every row lends its state once, and to another document."""
    documents = np.repeat([3, 1, 4], [4, 3, 2])
    partner = donors(documents, 0)
    expect("rows that lend", len(np.unique(partner)), len(documents))
    expect("rows that borrow from their own document", int((documents[partner] == documents).sum()), 0)


@known_answer("BALANCE")
def raw_variances_are_units() -> None:
    """Variance grows with the square of a unit, and differences between channels count: both say nothing of use."""
    noise = torch.randn(64, 8, generator=torch.Generator().manual_seed(32), dtype=torch.float64)
    plain, larger, offset = Moments(), Moments(), Moments()
    plain.add(noise)
    larger.add(1024 * noise[:30])
    larger.add(1024 * noise[30:])
    offset.add(noise + torch.arange(8.0))
    expect("variance in another unit", larger.variance / plain.variance, 1024.0**2, 1e-3)
    expect("variance as numpy has it", plain.variance, float(noise.numpy().var()), 1e-12)
    expect("RMS of a constant", _constant(3.0).rms, 3.0, 1e-12)
    expect("variance of a constant", _constant(3.0).variance, 0.0, 1e-9)
    # negative control: channels that are constants apart vary in no sense that a reader uses
    expect_between("variance of channels with their own means", offset.variance / plain.variance, 4.0, math.inf)


def _constant(value: float) -> Moments:
    moments = Moments()
    moments.add(torch.full((5, 4), value))
    return moments
