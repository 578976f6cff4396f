"""Known answers of PARETO: a planted frontier is found, and axes without anything in common claim nothing."""

import numpy as np

from harness.known_answers import known_answer
from harness.metrics import pareto
from harness.metrics.expect import expect, expect_between
from harness.metrics.intervals import Interval

# the first three lie on the frontier, each of the others is beaten by one of them
LOSS = np.array([1.0, 2.0, 3.0, 1.5, 2.5, 3.5, 3.0, 4.0])
BALANCE = np.array([0.1, 0.2, 0.3, 0.05, 0.1, 0.2, 0.1, 0.25])
DRAWS = 200


def _slope(value: float, half: float = 0.1) -> Interval:
    return Interval(value, value - half, value + half, 15, 3)


@known_answer("PARETO")
def a_planted_frontier_is_found() -> None:
    """Beaten points are off it for certain while the seeds agree; equal points share it; noise makes it uncertain."""
    mask = pareto.on_frontier(LOSS, BALANCE)
    expect("points of the planted frontier", int(mask[:3].sum()), 3)
    expect("other points on it", int(mask[3:].sum()), 0)
    expect("equal points", int(pareto.on_frontier([1.0, 1.0], [0.2, 0.2]).sum()), 2)
    rng = np.random.default_rng(1)
    calm = 1e-3 * rng.standard_normal((2, 8, 3))
    found = pareto.standings(LOSS[:, None] + calm[0], BALANCE[:, None] + calm[1] / 10, seed=0)
    expect("least probability on the frontier", min(s.frontier for s in found[:3]), 1.0)
    expect("largest probability off it", max(s.frontier for s in found[3:]), 0.0)
    expect("rank of the lowest loss", found[0].loss_rank.value, 1.0)
    expect("rank of the least balance", found[3].balance_rank.value, 8.0)
    # negative control: alike but for noise, nobody is certain
    noisy = pareto.standings(*rng.standard_normal((2, 8, 3)) * 0.01, seed=0)
    expect_between("largest probability among equals", max(s.frontier for s in noisy), 0.1, 0.999)
    width = noisy[0].loss_rank.high - noisy[0].loss_rank.low
    expect_between("width of a rank among equals", width, 2.0, 7.0)


@known_answer("PARETO")
def a_correlation_is_found_and_its_sign_is_kept() -> None:
    """Equal orders give 1, reversed ones -1 and no claim, whatever the scale of the axes."""
    x = np.arange(8.0)
    same = pareto.rank_correlation(x, np.exp(x), seed=0)
    expect("rho of equal orders", same.rho, 1.0, 1e-12)
    expect_between("its p", same.p_value, 0.0, 1e-3)
    expect("rho of reversed orders", pareto.rank_correlation(x, -(x**3), seed=0).rho, -1.0, 1e-12)
    expect("claim with an intervention that agrees", pareto.is_trade_off(same, _slope(1.0), _slope(0.5)), 1)
    expect("the same towards the other side", pareto.is_trade_off(same, _slope(-1.0), _slope(-0.5)), 1)
    expect("an intervention that disagrees", pareto.is_trade_off(same, _slope(1.0), _slope(-0.5)), 0)
    expect("an intervention without effect", pareto.is_trade_off(same, _slope(1.0), _slope(0.0)), 0)
    reversed_ = pareto.rank_correlation(x, -x, seed=0)
    expect("balance that comes with a lower loss", pareto.is_trade_off(reversed_, _slope(1.0), _slope(0.5)), 0)


@known_answer("PARETO")
def independent_axes_make_no_claim() -> None:
    """Negative control: p is below .05 in about 5 % of the draws; with the intervention no more than that claim."""
    rng = np.random.default_rng(3)
    found = [pareto.rank_correlation(*rng.standard_normal((2, 8)), seed=i, permutations=500) for i in range(DRAWS)]
    expect_between("p below .05", float(np.mean([c.p_value < 0.05 for c in found])), 0.01, 0.1)
    slopes = rng.standard_normal((DRAWS, 2))
    claims = [pareto.is_trade_off(c, _slope(a), _slope(b)) for c, (a, b) in zip(found, slopes.tolist(), strict=True)]
    expect_between("claims of a trade-off", float(np.mean(claims)), 0.0, 0.05)
