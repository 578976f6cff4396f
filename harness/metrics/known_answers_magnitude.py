"""Known answers of S1 and S2: memory length, size against writes, distance of two states."""

import math

import torch

from harness.known_answers import known_answer
from harness.metrics import magnitude
from harness.metrics.expect import expect, expect_between


def _accumulate(writes: torch.Tensor, decay: float) -> torch.Tensor:
    """The state after all ``writes`` ``[T, B, H, E]`` under a constant decay."""
    state = torch.zeros_like(writes[0])
    for write in writes:
        state = decay * state + write
    return state


@known_answer("S1")
def memory_length_of_a_constant_decay() -> None:
    """(1 - w^2t) / (1 - w^2), t for w = 1, and 1 for a state that keeps nothing."""
    for decay in (0.0, 0.5, 0.99, 1.0):
        lengths = magnitude.memory_length(torch.full((1, 40, 2), decay, dtype=torch.float64))
        want = 40.0 if decay == 1 else (1 - decay**80) / (1 - decay**2)
        expect(f"memory at w = {decay:g}", float(lengths[0, -1, 1]), want, 1e-9)
    changing = torch.tensor([0.3, 0.5, 0.0, 0.5], dtype=torch.float64)[None, :, None]
    expect("memory after a decay of 0 and one of .5", float(magnitude.memory_length(changing)[0, -1, 0]), 1.25)


@known_answer("S1")
def independent_writes_have_ratio_one() -> None:
    """Random writes under a constant decay give 1 whatever the decay and the scale; equal writes do not."""
    writes = torch.randn(64, 16, 2, 256, generator=torch.Generator().manual_seed(30), dtype=torch.float64)
    for decay, scale in ((0.5, 1.0), (0.95, 300.0), (1.0, 1e-3)):
        state = _accumulate(scale * writes, decay)
        memory = magnitude.memory_length(torch.full((16, 64, 2), decay))[:, -1]
        written = (scale * writes[::8]).square().mean(-1).transpose(0, 1)
        ratio = magnitude.write_ratio(state.square().mean(-1), written, memory)
        expect(f"ratio at w = {decay:g}, writes of size {scale:g}", float(ratio[0]), 1.0, 0.06)
    # negative controls: the same write at every position adds up, and a write that was not scaled shows
    alike = _accumulate(writes[:1].expand(64, -1, -1, -1), 1.0).square().mean(-1)
    one = writes[:1].square().mean(-1).transpose(0, 1)
    memory = torch.full((16, 2), 64.0)
    expect("ratio of equal writes", float(magnitude.write_ratio(alike, one, memory)[0]), 8.0, 1e-9)
    large = magnitude.write_ratio(1e6 * memory * one[:, 0], one, memory)
    expect("ratio of a state 1000 times too large", float(large[0]), 1e3, 1e-6)
    expect("ratio of nothing", float(magnitude.write_ratio(0 * alike, 0 * one, memory)[0]), math.nan)


@known_answer("S1")
def headroom_is_in_the_states_own_numbers() -> None:
    """A state of 1 has all of fp32 above it, one near the end has hardly any."""
    expect("headroom of 1, in units of the largest fp32", magnitude.headroom(torch.ones(2)) / 3.4028235e38, 1.0, 1e-6)
    expect_between("headroom of 1e36 (negative control)", magnitude.headroom(torch.tensor([1e36])), 300, 400)
    expect("headroom of NaN", magnitude.headroom(torch.tensor([math.nan, 1.0])), math.nan)


@known_answer("S2")
def distance_runs_from_equal_to_opposite() -> None:
    """Identical 0, independent sqrt 2, opposite 2; a common offset shrinks it, a common scale does not."""
    states = torch.randn(2, 8, 4, 32, 32, generator=torch.Generator().manual_seed(31))
    a, b = states
    expect("identical states", float(magnitude.relative_distance(a, a).max()), 0.0)
    expect("independent states", float(magnitude.relative_distance(a, b).mean()), math.sqrt(2), 0.01)
    expect("independent states, both 1000 times larger",
           float(magnitude.relative_distance(1e3 * a, 1e3 * b).mean()), math.sqrt(2), 0.01)  # fmt: skip
    expect("opposite states", float(magnitude.relative_distance(a, -a).mean()), 2.0, 1e-9)
    # negative control: two texts that move a large constant state a little are close
    expect_between("independent under an offset of 1000",
                   float(magnitude.relative_distance(a + 1e3, b + 1e3).mean()), 1e-3, 2e-3)  # fmt: skip
    expect("two zero states", float(magnitude.relative_distance(0 * a, 0 * b)[0]), math.nan)
