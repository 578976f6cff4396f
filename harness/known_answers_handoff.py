"""Known answers of S0, S3 and HANDOFF: a toy with a state that must pass, and broken ones that must not."""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.determinism import repetitions
from harness.handoff import DIVERGED, Agreement, hand_off, masked_hand_off
from harness.known_answers import known_answer
from harness.metrics.expect import expect, expect_between
from harness.state_shapes import expected_state, is_low_precision, report_shapes
from harness.sufficiency import RoundTrip, beyond_rounding, round_trips
from models.protocol import State

VOCAB, WIDTH, LENGTH = 13, 4, 76
DECAY = 0.9


class Toy(nn.Module):
    """S_t = .9 S_{t-1} + x_t + x_{t-1} / 2, logits E tanh(S_t); ``defect`` names what is wrong with it.

    proxy      returns tanh(S) for S             earlier    returns the state of one token before
    short      ignores the carried x_{t-1}       rounded    returns S in bfloat16's precision
    leak       lets packed documents see one another        padding    lets padding into the state
    noise      adds noise to the returned state  unwritten  reads memory that nobody wrote
    kept       starts from the end of the last call
    """

    def __init__(self, defect: str = "") -> None:
        super().__init__()
        self.defect = defect
        generator = torch.Generator().manual_seed(0)
        self.weight_VD = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator))
        self.kept: State | None = None

    def init_state(self, batch_size: int) -> State:
        """Zeros."""
        return State.of([{"toy": {"sum": torch.zeros(batch_size, WIDTH), "conv": torch.zeros(batch_size, WIDTH)}}])

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False, segments: Tensor | None = None
    ) -> Tensor | tuple[Tensor, State]:
        """The contract, with ``segments``."""
        batch, length = tokens_BT.shape
        if state is None and self.defect == "kept" and self.kept is not None:
            state = self.kept if self.kept.layers[0]["toy"]["sum"].shape[0] == batch else None
        kinds = (state or self.init_state(batch)).layers[0]["toy"]
        total_BD, last_BD = kinds["sum"], torch.zeros_like(kinds["conv"]) if self.defect == "short" else kinds["conv"]
        marks_BT = torch.ones_like(tokens_BT) if segments is None else segments
        if self.defect == "padding":
            marks_BT = marks_BT.clamp(min=1)
        before_BD, previous_B = total_BD, marks_BT[:, 0]
        logits = []
        for t in range(length):
            real_B1 = (marks_BT[:, t] > 0)[:, None]
            starts_B1 = (real_B1[:, 0] & (marks_BT[:, t] != previous_B) & (previous_B > 0))[:, None]
            if self.defect != "leak":
                total_BD, last_BD = total_BD.masked_fill(starts_B1, 0), last_BD.masked_fill(starts_B1, 0)
            previous_B = torch.where(real_B1[:, 0], marks_BT[:, t], previous_B)
            x_BD = self.weight_VD[tokens_BT[:, t]]
            before_BD = total_BD
            total_BD = torch.where(real_B1, DECAY * total_BD + x_BD + last_BD / 2, total_BD)
            last_BD = torch.where(real_B1, x_BD, last_BD)
            logits.append(total_BD.tanh() @ self.weight_VD.T)
        returned_BD = {"proxy": total_BD.tanh(), "earlier": before_BD, "rounded": total_BD.bfloat16().float()}.get(
            self.defect, total_BD
        )
        if self.defect == "noise":
            returned_BD = returned_BD * (1 + 3e-6 * torch.randn_like(returned_BD))
        if self.defect == "unwritten":
            returned_BD = returned_BD + 0 * torch.empty(WIDTH)
        final = State.of([{"toy": {"sum": returned_BD, "conv": last_BD}}])
        self.kept = final.detach()
        logits_BTV = torch.stack(logits, dim=1)
        return (logits_BTV, final) if return_states else logits_BTV


def toy_tokens() -> Tensor:
    """Three texts ``[3, LENGTH]``."""
    return torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def _trip(defect: str) -> RoundTrip:
    return next(round_trips(Toy(defect), toy_tokens(), (17,)))


@known_answer("S0")
def only_the_true_state_continues_a_text() -> None:
    """A true state gives the same logits; a projection, an earlier state and a rounded one do not."""
    expect("error of the true state", _trip("").error, 0.0, 1e-6)
    for defect, low in (("proxy", 1e-2), ("earlier", 1e-2), ("short", 1e-3), ("rounded", 2e-5)):
        expect_between(f"error with the defect {defect!r}", _trip(defect).error, low, 2.0)
    assert _trip("").sees, "a state of zeros and one of noise must show"
    expect("share of the zeroed state", RoundTrip(1, 0.01, 0.01, 0.02).share, 1.0)
    assert not RoundTrip(1, 0.0, 0.0, 0.02).sees, "a probe whose zeroed state changes nothing sees nothing"


@known_answer("S0")
def rounding_is_no_fault_of_the_state() -> None:
    """Two passes, each off by 3e-3, differ by 4.2e-3; 5e-3 on top are found, and a weaker state than that is not."""
    both = math.sqrt(2) * 3e-3
    expect("difference of two roundings", beyond_rounding(both, 3e-3), 0.0, 1e-9)
    expect("a fault of 5e-3 beside them", beyond_rounding(math.hypot(both, 5e-3), 3e-3), 5e-3, 1e-9)
    expect("the same in fp32", beyond_rounding(5e-3, 0.0), 5e-3)
    expect("of no number (negative control)", beyond_rounding(math.nan, 3e-3), math.nan)
    expect("with a rounding that is none", beyond_rounding(5e-3, math.nan), math.nan)
    expect("share of a true state", RoundTrip(1, both, 0.03, 0.04, rounding=3e-3).share, 0.0, 1e-6)
    expect("share of a zeroed state (negative control)", RoundTrip(1, 0.03, 0.03, 0.04, rounding=3e-3).share, 1.0)
    assert not RoundTrip(1, 0.0, 4e-3, 0.04, rounding=3e-3).sees, "a state worth less than rounding is not seen"


@known_answer("S0")
def a_wrong_shape_or_precision_is_named() -> None:
    """The state of a sound toy has no fault; a missing tensor, another width and bfloat16 values each are one."""
    specs = expected_state(Toy(), 3)
    _, state = Toy()(toy_tokens(), return_states=True)
    sound = report_shapes(state.detach(), specs, LENGTH)
    assert not sound.faults, f"a sound state has no fault: {sound.faults}"
    assert not sound.low_precision, "fp32 values need more than bfloat16"
    expect("bytes too many", sound.bytes_error, 0)
    expect("bytes of one document", sound.bytes_per_row, 2 * WIDTH * 4)
    wide = state.map(lambda path, t: torch.cat([t, t], dim=1) if path.kind == "sum" else t)
    expect("faults of a state twice as wide", len(report_shapes(wide, specs, LENGTH).faults), 1)
    expect("its bytes too many", report_shapes(wide, specs, LENGTH).bytes_error, 3 * WIDTH * 4)
    expect("faults of an empty state", len(report_shapes(State.of([{}]), specs, LENGTH).faults), 2)
    assert is_low_precision(torch.randn(8).bfloat16()), "bfloat16 is low precision"
    assert is_low_precision(torch.randn(8).bfloat16().float()), "and so are its values in fp32"
    assert not is_low_precision(torch.zeros(8)), "zeros say nothing of their precision"


@known_answer("S3")
def what_is_not_of_the_text_differs_between_passes() -> None:
    """A sound toy repeats its bits; noise, unwritten memory and a state left over from the last call do not."""
    assert all(again.identical for again in repetitions(Toy().eval(), toy_tokens())), "the toy is deterministic"
    for defect in ("noise", "unwritten", "kept"):
        first = repetitions(Toy(defect).eval(), toy_tokens(), 1)[0]
        assert not first.identical, f"{defect} must show in the first repetition"
    expect_between("noise of 3e-6", repetitions(Toy("noise").eval(), toy_tokens(), 1)[0].state, 1e-6, 1e-5)
    expect("unwritten memory", repetitions(Toy("unwritten").eval(), toy_tokens(), 1)[0].state, math.nan)


def _ways(defect: str) -> dict[str, Agreement]:
    with tempfile.TemporaryDirectory() as scratch:
        found = hand_off(Toy(defect).eval(), toy_tokens(), Path(scratch))
    return {agreement.way: agreement for agreement in found.agreements}


@known_answer("HANDOFF")
def every_way_of_reading_gives_the_same() -> None:
    """A sound toy agrees everywhere; one that drops its short state differs, from the first token after a cut on."""
    for way, agreement in _ways("").items():
        expect(f"{way}: logits", agreement.logits, 0.0, 1e-6)
        expect(f"{way}: state", agreement.state, 0.0, 1e-6)
        assert not agreement.note, f"{way}: nothing differs, so nothing is named: {agreement.note}"
    dropped = _ways("short")
    for way in ("uneven chunks", "token by token", "rows reordered"):
        expect_between(f"{way} without the short state", dropped[way].logits, 1e-4, 2.0)
    expect("first position of token by token", dropped["token by token"].first_position or 0, 1)
    expect("first position of rows reordered", dropped["rows reordered"].first_position or 0, LENGTH // 2)
    assert dropped["token by token"].first_state == "layers.0.toy.sum", "the state that is wrong is named"
    expect("each row alone without it", dropped["each row alone"].logits, 0.0, 1e-6)


@known_answer("HANDOFF")
def padding_and_packing_change_nothing() -> None:
    """A toy that heeds its segments agrees with each document alone; leaks between documents and from padding show."""
    sound = {agreement.way: agreement for agreement in masked_hand_off(Toy(), toy_tokens())}
    for way, agreement in sound.items():
        expect(f"{way}: logits", agreement.logits, 0.0, 1e-6)
        expect(f"{way}: state", agreement.state, 0.0, 1e-6)
        assert agreement.unmasked is not None, "a way that uses segments has a control without them"
        expect_between(f"{way}: without segments", agreement.unmasked, DIVERGED[torch.float32], math.inf)
    leaking = {agreement.way: agreement for agreement in masked_hand_off(Toy("leak"), toy_tokens())}
    expect_between("packed with a leak", leaking["packed"].logits, 1e-3, 2.0)
    expect("padded with a leak between documents", leaking["padded left"].logits, 0.0, 1e-6)
    padded = {agreement.way: agreement for agreement in masked_hand_off(Toy("padding"), toy_tokens())}
    expect_between("padding in the state, left", padded["padded left"].logits, 1e-3, 2.0)
    expect_between("padding in the state, right", padded["padded right"].state, 1e-3, 2.0)
