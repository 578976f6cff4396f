"""Known answers of EVOLUTION: toys whose memory is one number, a copy, or a growing mode."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data import Split, Windows
from harness.evolution import LAGS, BranchEvolution, evolution
from harness.influence import influence
from harness.known_answers import known_answer
from harness.metrics.evolution import ROUNDING, growth_exponent, half_life, monotonicity
from harness.metrics.expect import expect, expect_between
from models.protocol import Activations, LayerActivations, State

VOCAB, WIDTH = 32, 8


class Leaky(nn.Module):
    """h_t = w h_{t-1} + e(x_t), logits = U h: the whole memory is one decay. ``told`` is the decay that it reports."""

    branches = ("memory",)

    def __init__(self, decay: float, told: float | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.decay, self.told = decay, decay if told is None else told
        self.embedding = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64))
        self.readout = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64))

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        return_states: bool = False,
        return_activations: bool = False,
    ) -> Tensor | tuple[Tensor, State] | tuple[Tensor, State, Activations]:
        """The contract of models/protocol.py, with a state ``memory.h [B, 1, 1, D]``."""
        B, T = tokens_BT.shape
        h_BD = torch.zeros(B, WIDTH, dtype=torch.float64) if state is None else state.layers[0]["memory"]["h"][:, 0, 0]
        written_BTD = self.embedding[tokens_BT]
        seen = []
        for t in range(T):
            h_BD = self.decay * h_BD + written_BTD[:, t]
            seen.append(h_BD)
        h_BTD = torch.stack(seen, dim=1)
        logits_BTV = F.linear(h_BTD, self.readout)
        if not return_states:
            return logits_BTV
        final = State.of([{"memory": {"h": h_BD[:, None, None]}}])
        if not return_activations:
            return logits_BTV, final
        decays_BTH = torch.full((B, T, 1), self.told, dtype=torch.float64)
        return logits_BTV, final, Activations((LayerActivations({"memory": written_BTD}, {"memory": decays_BTH}),))


class Copy(nn.Module):
    """Says at every place what it read ``delay`` places earlier, and remembers just that much."""

    branches = ("memory",)

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.delay = delay

    def forward(
        self, tokens_BT: Tensor, state: State | None = None, return_states: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """The contract, with the last ``delay`` tokens, one-hot, as ``memory.last [B, delay, V]``."""
        B, T = tokens_BT.shape
        now_BTV = F.one_hot(tokens_BT, VOCAB).double()
        past_BdV = torch.zeros(B, self.delay, VOCAB).double() if state is None else state.layers[0]["memory"]["last"]
        all_BSV = torch.cat([past_BdV, now_BTV], dim=1)
        logits_BTV = 4 * all_BSV[:, :T]
        return (logits_BTV, State.of([{"memory": {"last": all_BSV[:, T:]}}])) if return_states else logits_BTV


def random_windows(count: int = 6, length: int = 2 * LAGS[-1]) -> Windows:
    """Windows of random tokens, one document each."""
    tokens = np.random.default_rng(5).integers(0, VOCAB, size=count * (length + 2)).astype(np.uint16)
    offsets = np.arange(count + 1) * (length + 2)
    return Windows.of(Split(tokens, offsets, tuple(map(str, range(count))), 0), length, count)


def _evolve(model: nn.Module) -> BranchEvolution:
    windows = random_windows()
    donors = [*range(1, len(windows)), 0]
    return evolution(model, windows, donors, device="cpu", vocab_size=VOCAB).branches["memory"]


@known_answer("EVOLUTION")
def responses_are_ordered_as_they_are() -> None:
    """A response that grows with the dose gives 1, one that falls -1; none has no order."""
    expect("a response that grows", monotonicity([0, 1, 2, 4], [0.0, 0.1, 0.3, 0.4]), 1.0, 1e-12)
    expect("a response that falls (negative control)", monotonicity([0, 1, 2], [3.0, 2.0, 1.0]), -1.0, 1e-12)
    expect("no response", monotonicity([0, 1, 2], [0.0, 0.0, 0.0]), math.nan)


@known_answer("EVOLUTION")
def half_lives_of_steady_decays() -> None:
    """w^m has the half-life ln 2 / -ln w, inside the lags and beyond the last; a share that never falls has none."""
    for w in (0.5, 0.9, 0.999):
        expect(f"w = {w}", half_life(LAGS, [w**m for m in LAGS]), math.log(2) / -math.log(w), 1e-9)
    expect("everything is kept", half_life(LAGS, [1.0] * len(LAGS)), math.inf)
    gone = math.log(2) / -math.log(ROUNDING)
    expect("nothing is kept", half_life(LAGS, [0.0] * len(LAGS)), gone, 1e-12)
    expect("less is kept than can be seen", half_life(LAGS, [1e-20] * len(LAGS)), gone, 1e-12)
    expect("doubling every 16 tokens", float(growth_exponent([[math.log(2)] * 4], 16)[0]), math.log(2) / 16, 1e-12)


@known_answer("EVOLUTION")
def a_leaky_sum_is_measured_as_it_is() -> None:
    """Half-life, implied half-life, exponent and superposition of h = w h + e; a false decay is seen."""
    found = _evolve(Leaky(0.9))
    layer = found.layers[0]
    assert layer.implied_half_life is not None, "the toy reports its decay"
    assert layer.superposition_error is not None, "the toy reports its decay"
    truth = math.log(2) / -math.log(0.9)
    expect("half-life", layer.half_life.value, truth, 1e-6)
    expect("half-life from the decays", layer.implied_half_life, truth, 1e-6)
    expect("superposition", layer.superposition_error, 0.0, 1e-12)
    expect("exponent", found.lyapunov.value, math.log(0.9), 1e-6)
    expect("response to no edit", found.dose[0].value, 0.0)
    lying = _evolve(Leaky(0.5, told=0.9)).layers[0]
    assert lying.implied_half_life is not None, "the toy reports a decay"
    expect("what a lying model implies (negative control)", lying.implied_half_life, truth, 1e-6)
    expect("what it does", lying.half_life.value, 1.0, 1e-6)


@known_answer("EVOLUTION")
def a_growing_mode_has_a_positive_exponent() -> None:
    """The sum h = 1.02 h + e grows by ln 1.02 a token."""
    found = _evolve(Leaky(1.02))
    expect("exponent", found.lyapunov.value, math.log(1.02), 1e-6)
    expect("half-life", found.layers[0].half_life.value, math.inf)


@known_answer("EVOLUTION")
def the_heat_map_peaks_where_the_memory_is() -> None:
    """A copy of what was read 5 places ago is moved at its source plus 5 alone; a leaky sum by w^(t - s)."""
    tokens_BT = torch.zeros(2, 24, dtype=torch.long)
    draws_BS = torch.full((2, 2), 7)
    places = list(range(24))
    copied = influence(Copy(5), tokens_BT, draws_BS, [3, 10], places)
    for row, source in zip(copied.output, copied.sources, strict=True):
        peak = int(np.argmax(row))
        expect(f"peak of source {source}", float(peak), float(source + 5))
        expect_between("influence elsewhere", sum(row) - row[peak], 0.0, 1e-12)
    leaky = influence(Leaky(0.8), tokens_BT, draws_BS, [3, 10], places)
    expect("influence before the source", leaky.before_source, 0.0)
    moved = np.asarray(leaky.state["memory"][1][10:])
    sizes = np.asarray([sum(0.8**k for k in range(t + 1)) for t in range(10, 24)])
    expect(
        "decay of the influence on the state",
        float(np.abs(moved * sizes / (moved * sizes)[0] - 0.8 ** np.arange(14)).max()),
        0.0,
        1e-9,
    )
