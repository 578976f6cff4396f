"""Known answers of INFO: two states of one bit each, whose joint function decides the next token."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from harness.information_flow import exchange, grid, next_token
from harness.known_answers import known_answer
from harness.metrics import information
from harness.metrics.expect import expect, expect_between
from models.protocol import State

Rule = Callable[[Tensor, Tensor], Tensor]
BRANCHES = ("rwkv", "mamba")
LN2 = math.log(2)
NATS = 1e-9
ROWS = [0, 1, 6, 7]
"""Each pair of LONG bits once, beside SHORT bits of both kinds."""


class TwoBits(nn.Module):
    """A stateful model whose first token sets a bit in either branch and one in a SHORT state.

    ``rule`` of the two LONG bits is the next token, without noise; the SHORT bit adds 4 to it.
    """

    branches = BRANCHES

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Logits ``[B, T, 8]`` fp64."""
        if state is None:
            bits = [((tokens_BT[:, :1] >> place) & 1).double() for place in range(3)]
            state = State.of([{"rwkv": {"wkv": bits[0], "shift_att": bits[2]}, "mamba": {"ssm": bits[1]}}])
        layer = state.layers[0]
        says_B1 = self.rule(layer["rwkv"]["wkv"], layer["mamba"]["ssm"]) + 4 * layer["rwkv"]["shift_att"]
        logits_BTV = 60.0 * nn.functional.one_hot(says_B1.long().expand_as(tokens_BT), 8).double()
        return (logits_BTV, state) if return_states else logits_BTV


def first_only(r: Tensor, m: Tensor) -> Tensor:
    """The next token is R's bit."""
    return r + 0 * m


def both(r: Tensor, m: Tensor) -> Tensor:
    """The next token holds both bits."""
    return r + 2 * m


def exclusive_or(r: Tensor, m: Tensor) -> Tensor:
    """Neither bit says anything without the other."""
    return (r - m).abs()


def conjunction(r: Tensor, m: Tensor) -> Tensor:
    """1 where both bits are."""
    return r * m


def _flow_of(rule: Rule, donors: tuple[list[int], list[int]] = (ROWS, ROWS)) -> information.Flow:
    """Information flow of the toy, through the code that measures models; row i starts with token i."""
    model = TwoBits(rule)
    _, state = model(torch.arange(8)[:, None], return_states=True)
    mixed = exchange(state, 5, grid(BRANCHES, *donors))
    logp_nV = next_token(model, torch.full((len(donors[0]) * len(donors[1]),), 5), mixed)
    return information.flow(logp_nV.view(len(donors[0]), len(donors[1]), -1))


@known_answer("INFO")
def two_bits_have_the_flow_of_their_rule() -> None:
    """Two bits: ln 4, in halves; their exclusive or: ln 2, in halves; R only: ln 2, all R's; AND: .5623, in halves."""
    # AND: ln 2 is worth half the time, and 3/4 against 1/4 is what the token says
    quarter = 2 * LN2 - 0.75 * math.log(3)
    for name, rule, total, parts in (
        ("both", both, 2 * LN2, (LN2, LN2)),
        ("exclusive or", exclusive_or, LN2, (LN2 / 2, LN2 / 2)),
        ("R only", first_only, LN2, (LN2, 0.0)),
        ("and", conjunction, quarter, (quarter / 2, quarter / 2)),
    ):
        found = _flow_of(rule)
        expect(f"total, {name}", found.total.lower, total, NATS)
        for branch, got, want in zip(BRANCHES, found.parts, parts, strict=True):
            expect(f"part of {branch}, {name}", got, want, NATS)
    found = _flow_of(exclusive_or)
    expect("exclusive or, R alone", found.alone[0], 0.0, NATS)
    expect("exclusive or, synergy", found.synergy, LN2, NATS)


@known_answer("INFO")
def the_same_donor_says_nothing() -> None:
    """Negative control: donors that do not differ give 0, whatever the rule and however sure the model is."""
    for rule in (both, exclusive_or, first_only, conjunction):
        found = _flow_of(rule, ([3] * 16, [3] * 16))
        expect("total of one donor", found.total.lower, 0.0, 1e-12)
        expect("its upper bound", found.total.upper, 0.0, 1e-12)
    # a token that only the SHORT state decides: it is kept, so nothing flows from the LONG one
    expect("total of what SHORT decides", _flow_of(lambda r, m: 0 * (r + m)).total.lower, 0.0, NATS)


@known_answer("INFO")
def the_bounds_hold_the_truth_between_them() -> None:
    """A bit through a symmetric channel with noise .1 over 31 other tokens: 64 donors bracket what it carries."""
    noise, vocabulary = 0.1, 32
    channel_2V = torch.full((2, vocabulary), noise / (vocabulary - 1), dtype=torch.float64)
    channel_2V[[0, 1], [0, 1]] = 1 - noise
    mixture_V = channel_2V.mean(0)
    truth = float(torch.special.entr(mixture_V).sum() - torch.special.entr(channel_2V).sum(1).mean())
    expect("truth of the channel", truth, 0.6047, 1e-4)
    draws = np.random.default_rng(31).integers(0, 2, size=(30, 64))
    found = [information.channel_information(channel_2V.log()[torch.as_tensor(draw)]) for draw in draws]
    lower, upper = float(np.mean([f.lower for f in found])), float(np.mean([f.upper for f in found]))
    expect_between("mean lower bound", lower, truth - 0.015, truth)
    expect_between("mean upper bound", upper, truth, truth + 0.015)


@known_answer("INFO")
def no_number_of_donors_says_more_than_its_logarithm() -> None:
    """Sixteen donors that each name a token of their own: ln 16 by the plug-in, and no upper bound at all."""
    logp_KV = 800.0 * (torch.eye(16, dtype=torch.float64) - 1)
    found = information.channel_information(logp_KV)
    expect("plug-in of 16 donors", found.lower, math.log(16), NATS)
    expect_between("bound where no donor knows another's token", found.upper, 100.0, math.inf)
