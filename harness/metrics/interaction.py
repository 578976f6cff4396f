"""What the state of a branch is worth to the next tokens, and what two branches are worth only together."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from harness.batching import summed_at_once
from harness.metrics.intervals import ClusterRatio

# Rows of the vocabulary that a CPU works on at a time: what fits into its cache is several times faster
_CHUNK = 16


def divergences(clean_logp: Tensor, other_logp: Tensor) -> Tensor:
    r"""KL(p || q) in nats over the last dimension, ``[..., V] -> [...]``, from log-probabilities.

        KL = sum_v p_v (e^d_v - 1 - d_v),    d = ln q - ln p

    which is the usual sum p ln(p / q), since p and q both add up to 1, but no term is negative and each is quadratic
    in d: equal inputs give exactly 0, and rounding of logits by 1e-6 gives 1e-12 instead of 1e-6.
    """
    assert clean_logp.shape == other_logp.shape
    p_nV, q_nV = clean_logp.reshape(-1, clean_logp.shape[-1]), other_logp.reshape(-1, clean_logp.shape[-1])
    size = summed_at_once(_CHUNK, p_nV.shape[-1], p_nV.device)
    parts = [_divergence(p_nV[begin : begin + size], q_nV[begin : begin + size]) for begin in range(0, len(p_nV), size)]
    return torch.cat(parts).view(clean_logp.shape[:-1])


def _divergence(logp_nV: Tensor, logq_nV: Tensor) -> Tensor:
    d_nV, p_nV = logq_nV - logp_nV, logp_nV.exp()
    near_nV = p_nV * (torch.expm1(d_nV) - d_nV)
    total_n: Tensor = near_nV.sum(-1)
    if bool(total_n.isfinite().all()):
        return total_n
    # p underflows where q does not: there p e^d is q itself
    q_nV = logq_nV.exp()
    far_nV = q_nV - p_nV - torch.where(p_nV > 0, p_nV * d_nV, 0.0)
    return torch.where((d_nV < 1) & (p_nV > 0), near_nV, far_nV).sum(-1)


def interaction(effects: Mapping[str, ClusterRatio], together: ClusterRatio) -> ClusterRatio:
    r"""What is lost only when all branches are ablated at once:  Delta_all - sum_c Delta_c, by cluster.

    0 for effects that add up. Positive when the branches hold the same thing (either one suffices), negative when
    each is worthless without the other: for the exclusive or of two bits, one in each, all three deltas are ln 2 and
    the interaction is -ln 2.
    """
    found = together
    for effect in effects.values():
        found = found.minus(effect)
    return found


def loss_shares(effects: Mapping[str, ClusterRatio]) -> dict[str, ClusterRatio]:
    r"""Share of each branch in the summed losses:  Delta_c / sum_b Delta_b. Unit 1; they add up to 1.

    The smaller of two is f = 1 / (1 + r) for a ratio r = max/min, but stays finite when the smaller delta is lost in
    its noise. It means nothing when no delta differs from zero.
    """
    ratios = list(effects.values())
    for first, second in pairwise(ratios):
        first.minus(second)  # refuses effects that are not paired
    total = sum(ratio.numerators for ratio in ratios)
    return {name: ClusterRatio(ratio.numerators, total, ratio.n) for name, ratio in effects.items()}  # type: ignore[arg-type]
