import math

import numpy as np
import pytest
import torch

from harness.metrics import spectrum, state
from harness.metrics.intervals import bootstrap_ratio


def test_effective_rank_of_a_known_spectrum_of_a_rotated_matrix():
    """Singular values 3, 1 and 0: p = .75, .25, whatever the bases."""
    generator = torch.Generator().manual_seed(50)
    left, _ = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(5, 3, generator=generator, dtype=torch.float64))
    matrix = left @ torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)) @ right.T

    found = float(spectrum.effective_rank(matrix))

    assert found == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), abs=1e-9)
    assert float(spectrum.top_share(matrix, 1)) == pytest.approx(0.75)


def test_a_batch_gives_what_its_matrices_give_alone_even_beside_a_broken_one():
    matrices = torch.randn(2, 3, 6, 4, generator=torch.Generator().manual_seed(51))
    matrices[1, 2, 0, 0] = math.nan

    ranks = spectrum.effective_rank(matrices)

    assert ranks.shape == (2, 3)
    assert torch.isnan(ranks[1, 2])
    assert float(ranks[0, 1]) == pytest.approx(float(spectrum.effective_rank(matrices[0, 1])))
    assert torch.isfinite(ranks).sum() == 5


def test_scale_and_transposition_do_not_matter():
    matrix = torch.randn(16, 64, generator=torch.Generator().manual_seed(52))
    rank = float(spectrum.effective_rank(matrix))

    assert float(spectrum.effective_rank(1e-20 * matrix.double())) == pytest.approx(rank, rel=1e-6)
    assert float(spectrum.effective_rank(matrix.T)) == pytest.approx(rank, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "top5"), [((32, 32), 0.312), ((64, 64), 0.167), ((64, 128), 0.133), ((16, 64), 0.411)]
)
def test_the_null_of_the_top5_share_depends_on_the_shape_alone(shape, top5):
    assert spectrum.spectrum_null(*shape).top5_share == pytest.approx(top5, abs=0.005)
    assert spectrum.spectrum_null(*shape) is spectrum.spectrum_null(*shape)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_innovation_gives_the_timescale_back_where_the_cosine_gives_only_the_decay(decay):
    """Independent writes under a constant decay: iota^2 = 1 - w^2 at any w, and the lag-1 cosine is w itself."""
    generator = torch.Generator().manual_seed(53)
    steps, size, settled = 1000, 32, 700
    current = torch.zeros(size, size, dtype=torch.float64)
    states = []
    for _ in range(steps):
        current = decay * current + torch.randn(size, size, generator=generator)
        states.append(current)
    now, before = torch.stack(states[settled:]), torch.stack(states[settled - 1 : -1])

    squared = state.innovation(now, before, torch.tensor(decay)).square().mean()

    assert float(squared) == pytest.approx(1 - decay**2, rel=0.03)
    tau = state.timescale(state.effective_decay(squared.sqrt()))
    assert float(tau) == pytest.approx(-1 / math.log(decay), rel=0.03)
    cosine = torch.cosine_similarity(now.flatten(1), before.flatten(1)).mean()
    assert float(cosine) == pytest.approx(decay, abs=0.01)


def test_innovation_uses_the_decay_of_each_channel():
    previous = torch.ones(2, 3)
    decay = torch.tensor([[0.5], [1.0]])

    assert float(state.innovation(decay * previous, previous, decay)) == 0
    assert float(state.innovation(decay * previous, previous, torch.ones(2, 1))) > 0.4


def test_timescales_at_the_ends():
    tau = state.timescale(torch.tensor([0.0, 1 / math.e, 1.0]))

    assert tau[0] == 0
    assert float(tau[1]) == pytest.approx(1, abs=1e-6)
    assert math.isinf(tau[2])
    assert float(state.effective_decay(torch.tensor(1.3))) == 0


def test_the_mean_timescale_is_that_of_the_decay_that_forgets_as_much():
    decays_BTH = torch.tensor([0.5, 0.9, 0.99, 0.7]).reshape(1, 4, 1).double()

    tau = float(state.mean_timescale(decays_BTH))

    assert math.exp(-4 / tau) == pytest.approx(float(decays_BTH.prod()))


def test_input_sensitivity_of_a_mixture_of_constant_and_varying_content():
    """Constant part of power 3, varying part of power 1: rho near 1/4."""
    generator = torch.Generator().manual_seed(54)
    varying = torch.randn(256, 2, 40, generator=generator)
    constant = math.sqrt(3) * torch.sign(torch.randn(2, 40, generator=generator))

    ratio = state.input_sensitivity(varying + constant, np.arange(256))

    assert ratio.value == pytest.approx(0.25 * 255 / 256, abs=0.01)
    interval = bootstrap_ratio(ratio, seed=0)
    assert interval.low < 0.25 < interval.high
    assert interval.n_clusters == 256


def test_a_write_that_depends_on_the_position_alone_is_constant_over_inputs():
    """The mean is taken at each position: a positional pattern must not look like sensitivity to the input."""
    pattern_TD = torch.randn(9, 6, generator=torch.Generator().manual_seed(55))

    assert state.input_sensitivity(pattern_TD.expand(32, 9, 6), np.arange(32)).value == pytest.approx(0, abs=1e-20)


def test_windows_of_one_document_form_one_cluster():
    states = torch.randn(12, 5, generator=torch.Generator().manual_seed(56))

    ratio = state.input_sensitivity(states, np.arange(12) // 3)

    assert (len(ratio.numerators), ratio.n) == (4, 12)
    assert ratio.value == pytest.approx(state.input_sensitivity(states, np.arange(12)).value)


def test_rms_is_the_root_mean_square():
    assert state.rms(torch.tensor([3.0, 4.0, 0.0, 0.0])) == pytest.approx(2.5)
    assert math.isnan(state.rms(torch.zeros(0)))


def test_saturation_of_nothing_or_of_nan_is_no_number():
    assert math.isnan(state.gate_saturation(torch.zeros(0)))
    assert math.isnan(state.decay_saturation(torch.tensor([0.5, math.nan])).short)
    assert state.gate_saturation(torch.tensor([math.inf, 0.0])) == 0.5


def test_many_matrices_are_shared_by_threads_bit_by_bit():
    matrices = torch.randn(5, 20, 8, 6, generator=torch.Generator().manual_seed(0))
    matrices[1, 3] = 0.0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = spectrum.effective_rank(matrices)
        torch.set_num_threads(3)
        shared = spectrum.effective_rank(matrices)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone.nan_to_num(-1), shared.nan_to_num(-1))
    assert shared.shape == (5, 20)
    assert shared.isnan().sum() == 1


def test_one_matrix_has_one_rank():
    assert float(spectrum.effective_rank(torch.eye(4))) == pytest.approx(4)
