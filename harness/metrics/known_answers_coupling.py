"""Known answers of COUPLING: what a gradient times the difference of two states is, and what a norm is not."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.known_answers import known_answer
from harness.metrics import coupling
from harness.metrics.expect import expect, expect_between


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _strength(products_n: Tensor) -> float:
    """K of products in 20 documents."""
    square = coupling.mean_square(products_n[:, None].numpy(), np.arange(len(products_n)) % 20)
    return coupling.strength(square, seed=0).value


@known_answer("COUPLING")
def a_linear_loss_couples_by_the_covariance_of_the_state() -> None:
    """For a loss a . S the square of K is a' Sigma a, whatever the mean of S."""
    a_D, root_DD = _normal(21, 6), _normal(22, 6, 6)
    states_nD = _normal(23, 20000, 6) @ root_DD.T + 100
    products_n = (states_nD[:10000] - states_nD[10000:]) @ a_D
    expect("K over the root of a' Sigma a", _strength(products_n) / float((root_DD.T @ a_D).norm()), 1.0, 0.02)
    # negative control: the same donor
    expect("K of states that are the same", _strength((states_nD[:100] - states_nD[:100]) @ a_D), 0.0)


@known_answer("COUPLING")
def a_state_that_is_rescaled_and_read_back_couples_as_before() -> None:
    """S -> A S with the readout undone leaves K; the norms of gradient and state, multiplied, move with A."""
    w_D, A_DD = _normal(24, 6), torch.diag(torch.tensor([1e3, 10.0, 1.0, 1.0, 0.1, 1e-3], dtype=torch.float64))
    states_nD, others_nD = _normal(25, 50, 6), _normal(26, 50, 6)

    def both(readout_D: Tensor, ours_nD: Tensor, theirs_nD: Tensor) -> tuple[float, float]:
        leaf_nD = ours_nD.clone().requires_grad_()
        (gradient_nD,) = torch.autograd.grad(torch.tanh(leaf_nD @ readout_D).sum(), leaf_nD)
        norms = float((gradient_nD.norm(dim=1) * ours_nD.norm(dim=1)).mean())
        return _strength((gradient_nD * (theirs_nD - ours_nD)).sum(1)), norms

    plain, plain_norms = both(w_D, states_nD, others_nD)
    changed, changed_norms = both(w_D @ A_DD.inverse(), states_nD @ A_DD, others_nD @ A_DD)
    expect("K after over before", changed / plain, 1.0, 1e-9)
    expect_between("product of norms, after over before (negative control)", changed_norms / plain_norms, 10.0, 1e9)


@known_answer("COUPLING")
def behind_a_norm_the_gradient_times_the_state_is_nothing() -> None:
    """Euler: a loss that does not see the scale of S has g . S = 0; g . (S' - S) is as large as ever."""
    states_nD, others_nD, head_DV = 100 * _normal(27, 40, 16), 100 * _normal(28, 40, 16), _normal(29, 16, 50)
    leaf_nD = states_nD.clone().requires_grad_()
    logits_nV = F.group_norm(leaf_nD, 2, eps=1e-12) @ head_DV
    loss = F.cross_entropy(logits_nV, torch.full((40,), 3), reduction="sum")
    (gradient_nD,) = torch.autograd.grad(loss, leaf_nD)
    difference = _strength((gradient_nD * (others_nD - states_nD)).sum(1))
    own = _strength((gradient_nD * states_nD).sum(1))
    expect("gradient times state, over that of differences", own / difference, 0.0, 1e-6)
    expect_between("K", difference, 0.1, 100.0)


@known_answer("COUPLING")
def shares_and_ratios_agree() -> None:
    """3 to 1 is .75 and .25 either way round; twins are 1 to 1; nothing beside something is 0, and 0/0 is no number."""
    signs_np = np.sign(np.random.default_rng(30).standard_normal((40, 2)))
    documents = np.arange(40) // 2
    one, three, none = (coupling.mean_square(scale * signs_np, documents) for scale in (1.0, 3.0, 0.0))
    for first, second, share, ratio in (
        (three, one, 0.75, 3.0),
        (one, three, 0.25, 3.0),
        (one, one, 0.5, 1.0),
        (none, one, 0.0, math.inf),
        (one, none, 1.0, math.inf),
        (none, none, math.nan, math.nan),
    ):
        found = coupling.compare(first, second, seed=0)
        expect("share of the first", found.first.value, share, 1e-12)
        expect("share of the second", found.second.value, 1 - share, 1e-12)
        if math.isinf(ratio):
            assert math.isinf(found.ratio.value), f"ratio over nothing: got {found.ratio.value}"
        else:
            expect("ratio", found.ratio.value, ratio, 1e-9)


@known_answer("COUPLING")
def ranks_tell_a_first_order_that_misleads() -> None:
    """Effects that grow with their prediction agree by 1 whatever their sign; unrelated ones by about 0."""
    predicted = np.random.default_rng(32).standard_normal(400)
    expect("agreement of cubes", coupling.rank_agreement(predicted, -(predicted**3)), 1.0, 1e-9)
    unrelated = coupling.rank_agreement(predicted, np.random.default_rng(33).standard_normal(400))
    expect_between("agreement of the unrelated (negative control)", unrelated, -0.15, 0.15)
    expect("agreement with what does not vary", coupling.rank_agreement(predicted, np.ones(400)), math.nan)
    expect("distortion, both off alike", coupling.distortion((2.0, 1.0), (6.0, 3.0)), 1.0, 1e-12)
    expect("distortion, one off by 3", coupling.distortion((2.0, 1.0), (2.0, 3.0)), 3.0, 1e-12)
