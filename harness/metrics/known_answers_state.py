"""Known answers of G3.5: innovation, input sensitivity, effective rank, saturation."""

import math

import numpy as np
import torch

from harness.known_answers import known_answer
from harness.metrics import spectrum, state
from harness.metrics.expect import expect, expect_between


@known_answer("G3.5")
def innovation_measures_the_decay() -> None:
    """Independent writes under a constant decay w: iota^2 = 1 - w^2, so tau = -1 / ln w comes back."""
    generator = torch.Generator().manual_seed(10)
    decay, steps, size = torch.tensor(0.9), 160, 16
    writes = torch.randn(steps, size, 1, generator=generator) * torch.randn(steps, 1, size, generator=generator)
    states = [torch.zeros(size, size)]
    for write in writes:
        states.append(decay * states[-1] + write)
    now, before = torch.stack(states[61:]), torch.stack(states[60:-1])
    squared = state.innovation(now, before, decay).square().mean()
    expect("mean squared innovation at w = .9", float(squared), 1 - 0.81, 0.015)
    expect("timescale", float(state.timescale(state.effective_decay(squared.sqrt()))), -1 / math.log(0.9), 0.8)
    expect("innovation of a state nobody writes", float(state.innovation(0.9 * now[0], now[0], decay)), 0.0, 1e-7)
    expect("innovation of a zero state", float(state.innovation(states[0], states[0], decay)), math.nan)


@known_answer("G3.5")
def input_sensitivity_runs_from_constant_to_independent() -> None:
    """One state for every text gives 0, independent zero-mean states (n-1)/n."""
    texts = 64
    independent = torch.randn(texts, 4, 16, 16, generator=torch.Generator().manual_seed(11))
    documents = np.arange(texts)
    rho = state.input_sensitivity(independent, documents).value
    expect("rho of independent states", rho, (texts - 1) / texts, 0.002)
    constant = independent[:1].expand(texts, -1, -1, -1)
    expect("rho of a constant state", state.input_sensitivity(constant, documents).value, 0.0, 1e-20)
    # negative control: a large offset that no text changes must not look like sensitivity
    expect_between("rho under an offset of 100", state.input_sensitivity(independent + 100, documents).value, 0, 2e-4)
    expect("rho of zero states", state.input_sensitivity(0 * independent, documents).value, math.nan)


@known_answer("G3.5")
def effective_rank_counts_directions() -> None:
    """Identity of size 4: 4 directions; an outer product: 1, at any scale; nothing and NaN have none."""
    matrices = torch.stack([torch.eye(4), torch.outer(torch.arange(1.0, 5), torch.ones(4)), 1e-6 * torch.eye(4)])
    ranks = spectrum.effective_rank(matrices).tolist()
    for what, got, want in zip(("identity", "outer product", "small identity"), ranks, (4.0, 1.0, 4.0), strict=True):
        expect(f"effective rank of the {what}", got, want, 1e-6)
    # p = .75 and .25: squares in place of singular values would give .9 and .1
    uneven = float(spectrum.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))))
    expect("effective rank of singular values 3 and 1", uneven, 4 * 3**-0.75, 1e-6)
    broken = torch.stack([torch.zeros(4, 4), torch.full((4, 4), math.inf)])
    for got in spectrum.effective_rank(broken).tolist():
        expect("effective rank of a zero or infinite matrix", got, math.nan)


@known_answer("G3.5")
def noise_has_its_own_spectrum() -> None:
    """Negative control: the legacy top-5 share calls pure noise of 32 x 32 and 64 x 64 two different things."""
    expect("top-5 share of 32 x 32 noise", spectrum.spectrum_null(32, 32).top5_share, 0.312, 0.01)
    expect("top-5 share of 64 x 64 noise", spectrum.spectrum_null(64, 64).top5_share, 0.167, 0.01)
    expect_between("effective rank of 32 x 32 noise", spectrum.spectrum_null(32, 32).effective_rank, 22, 28)


@known_answer("G3.5")
def saturation_counts_the_ends() -> None:
    """Planted shares come back; a NaN is no healthy gate."""
    logits = torch.tensor([0.0, 4.9, -5.1, 6.0, 0.1])
    expect("saturated gates", state.gate_saturation(logits), 0.4)
    expect("saturated gates with a NaN", state.gate_saturation(torch.tensor([math.nan, 0.0])), math.nan)
    ends = state.decay_saturation(torch.tensor([0.005, 0.5, 0.999, 0.99995]))
    expect("short decays", ends.short, 0.25)
    expect("long decays", ends.long, 0.25)
