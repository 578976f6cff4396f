"""Information that flows from the state to the next token, with the model's own softmax as the channel.

Nothing is estimated in state space: a state enters only through the distribution of the next token that it leads to, so
its dimension does not matter. Probabilities come in as logs, in nats; sums run in fp64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.batching import summed_at_once

# Columns of the vocabulary that a CPU works on at a time: what fits into its cache is several times faster
_CHUNK = 512


@dataclass(frozen=True)
class Bracket:
    """Bounds of a mutual information, in nats; each holds in expectation over the donors drawn.

    lower  the plug-in, H(mean P) - mean H(P): at most ln K for K donors
    upper  mean KL of each donor's distribution against the mixture of the others: the leave-one-out bound
    """

    lower: float
    upper: float


@dataclass(frozen=True)
class Flow:
    """What two states R (first) and M (second) tell the next token Y, in nats: plug-ins over a grid of donors.

    total         I(R, M; Y), with its upper bound
    alone         (I(R; Y), I(M; Y)), the other one drawn at random
    given         (I(R; Y | M), I(M; Y | R))
    """

    total: Bracket
    alone: tuple[float, float]
    given: tuple[float, float]

    @property
    def parts(self) -> tuple[float, float]:
        """Shapley values of the two states, (alone + given) / 2: they add up to the total."""
        first, second = ((a + g) / 2 for a, g in zip(self.alone, self.given, strict=True))
        return first, second

    @property
    def synergy(self) -> float:
        """I(R; Y | M) - I(R; Y): positive when the two tell more together, negative when they say the same."""
        return self.given[0] - self.alone[0]


def channel_information(logp_KV: Tensor) -> Bracket:
    """Mutual information of a state drawn from K equally likely ones and the next token. K must be 2 or more.

    Source  Poole et al., arXiv:1905.06922, sections 2.1 and 2.3.
    """
    grid = _grid(logp_KV[:, None, :])
    return Bracket(grid.mixture - grid.cells, grid.crossed - grid.cells)


def flow(logp_JKV: Tensor) -> Flow:
    """Information flow from a grid of donors: ``logp_JKV[j, k]`` is what follows the j-th R and the k-th M.

    The upper bound of the total leaves out the donor's whole row and column: cells that share a donor with the one in
    hand are no independent draws. J and K must be 2 or more.

    Source  Ay & Polani, Adv. Complex Syst. 11 (2008) 17, for the flow; Shapley values are ours.
    """
    assert min(logp_JKV.shape[:2]) >= 2, "a grid needs two donors on each side"
    grid = _grid(logp_JKV)
    return Flow(
        Bracket(grid.mixture - grid.cells, grid.crossed - grid.cells),
        (grid.mixture - grid.rows, grid.mixture - grid.columns),
        (grid.columns - grid.cells, grid.rows - grid.cells),
    )


@dataclass(frozen=True)
class _Grid:
    """Entropies of a grid in nats: of the mean of all cells, and the means over rows, columns and single cells.

    crossed  mean cross entropy of a cell against the mean of the cells in other rows and columns
    """

    mixture: float
    rows: float
    columns: float
    cells: float
    crossed: float


def _grid(logp_JKV: Tensor) -> _Grid:
    """Entropies of the grid, chunk by chunk of the vocabulary; with one column only other rows are left in."""
    others_JJ, others_KK = _others(logp_JKV.shape[0], logp_JKV), _others(logp_JKV.shape[1], logp_JKV)
    sums = torch.zeros(5, dtype=torch.float64, device=logp_JKV.device)
    size = summed_at_once(_CHUNK, logp_JKV.shape[:2].numel(), logp_JKV.device)
    for part_JKv in torch.split(logp_JKV, size, dim=-1):
        logs_JKv = part_JKv.double()
        p_JKv = logs_JKv.exp()
        rows_Jv, columns_Kv = p_JKv.mean(1), p_JKv.mean(0)
        left_JKv = torch.einsum("jl,lkv->jkv", others_JJ, torch.einsum("km,lmv->lkv", others_KK, p_JKv))
        # a token of probability 0 has a log of -inf and counts for nothing
        own_JKv = p_JKv * torch.where(p_JKv > 0, logs_JKv, 0.0)
        sums += torch.stack(
            [
                torch.special.entr(rows_Jv.mean(0)).sum(),
                torch.special.entr(rows_Jv).sum(-1).mean(),
                torch.special.entr(columns_Kv).sum(-1).mean(),
                -own_JKv.sum(-1).mean(),
                -torch.special.xlogy(p_JKv, left_JKv).sum(-1).mean(),
            ]
        )
    return _Grid(*sums.tolist())


def _others(count: int, like: Tensor) -> Tensor:
    """Matrix that takes the mean over all other donors; the identity for one donor, which stands for no choice."""
    eye = torch.eye(count, dtype=torch.float64, device=like.device)
    return eye if count == 1 else (1 - eye) / (count - 1)
