"""Known answers of D2: directions over documents, use of the spectrum, likeness of states."""

import math

import numpy as np
import torch

from harness.known_answers import known_answer
from harness.metrics import cka, collapse
from harness.metrics.expect import expect, expect_between
from harness.metrics.spectrum import effective_rank


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@known_answer("D2")
def directions_count_how_states_differ() -> None:
    """One line: 1. Noise: n d / (n + d). What all texts have in common does not count, nor does the scale of a head."""
    line = _noise(31, 64, 1) * _noise(32, 1, 256) + 100
    expect("directions of states on one line", collapse.participation_ratio(line), 1.0, 1e-9)
    noise = _noise(33, 64, 4, 16, 16)
    null = collapse.participation_null(64, 1024)
    expect("directions of noise", collapse.participation_ratio(noise.flatten(1)), null, 0.04 * null)
    expect("the same around a constant", collapse.participation_ratio(noise.flatten(1) + 100), null, 0.04 * null)
    scaled = noise * torch.tensor([1.0, 1e3, 1e-3, 1.0]).view(4, 1, 1).double()
    expect("heads of unit size", collapse.participation_ratio(collapse.by_unit_head(scaled)), null, 0.04 * null)
    # negative control: without that the largest head hides the others
    expect_between("heads as they are", collapse.participation_ratio(scaled.flatten(1)), 40, 54)
    same = noise[:1].expand(64, -1, -1, -1).flatten(1)
    expect("directions of one state for all texts", collapse.participation_ratio(same), math.nan)


@known_answer("D2")
def an_interval_of_directions_holds_the_truth() -> None:
    """Two directions of equal size have PR 2, and the interval over documents says so."""
    states = _noise(34, 96, 2) @ torch.linalg.qr(_noise(35, 64, 2))[0].T
    found = collapse.participation_interval(states, np.arange(96) // 2)
    expect_between("lower end", found.low, 1.5, 2.0)
    expect_between("upper end", found.high, found.value, 2.4)
    alone = collapse.participation_interval(states, np.zeros(96))
    expect("upper end with one document", alone.high, math.inf)


@known_answer("D2")
def utilisation_has_no_scale() -> None:
    """One outer product uses nothing, equal singular values everything, at any scale."""
    outer, full = torch.outer(torch.arange(1.0, 9), torch.ones(16)), torch.eye(8, 16)
    for what, matrix, want in (("outer product", outer, 0.0), ("identity", full, 1.0), ("large one", 1e6 * full, 1.0)):
        got = float(collapse.utilisation(effective_rank(matrix), matrix.shape))
        expect(f"utilisation of the {what}", got, want, 1e-6)


@known_answer("D2")
def likeness_of_unrelated_states_is_zero() -> None:
    """A rotation and a scale: 1. Independent states wider than there are texts: 0; the form in common use says .9."""
    x, y = _noise(36, 64, 1024), _noise(37, 64, 1024)
    rotated = 3 * x @ torch.linalg.qr(_noise(38, 1024, 64))[0]
    within = x[:, :64] @ torch.linalg.qr(_noise(39, 64, 64))[0]
    expect("X and 3 X Q", cka.debiased_cka(cka.gram(x[:, :64]), cka.gram(3 * within)), 1.0, 1e-9)
    expect_between("X and a projection of it", cka.debiased_cka(cka.gram(x), cka.gram(rotated)), 0.05, 0.6)
    independent = cka.debiased_cka(cka.gram(x), cka.gram(y))
    expect("independent states", independent, 0.0, 0.06)
    # negative control
    expect_between("independent states, biased form", cka.biased_cka(cka.gram(x), cka.gram(y)), 0.9, 1.0)
    null = cka.permutation_null(cka.gram(x), cka.gram(y), seed=0, draws=50)
    expect_between("95 % point of unrelated states", null, 0.005, 0.1)
    shared = x + y
    expect_between("states with half in common", cka.debiased_cka(cka.gram(x), cka.gram(shared)), null, 1.0)
