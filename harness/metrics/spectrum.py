"""How many directions of a state matrix are in use, and what noise of the same shape would show."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NULL_DRAWS = 64
NULL_SEED = 20070903

_WORTH_A_THREAD = 16


@dataclass(frozen=True)
class SpectrumNull:
    """Mean over Gaussian matrices of one shape: the value that means nothing."""

    effective_rank: float
    top5_share: float


def _shares(matrices: Tensor) -> Tensor:
    """Singular values over their sum, ``[..., K, V] -> [..., min(K, V)]`` fp64, largest first.

    NaN for an all-zero or non-finite matrix.
    """
    # a GPU takes such small matrices one by one, each six times slower than a processor core does
    values = matrices.detach().to("cpu", torch.float64)
    finite = values.isfinite().all(dim=(-2, -1))
    # LAPACK refuses a whole batch for one bad matrix
    sigma = _singular_values(torch.where(finite[..., None, None], values, 0.0))
    # 0/0 of a zero matrix is the NaN that is meant
    return torch.where(finite[..., None], sigma / sigma.sum(-1, keepdim=True), torch.nan).to(matrices.device)


def _singular_values(matrices: Tensor) -> Tensor:
    """``torch.linalg.svdvals`` bit by bit; by itself it takes the matrices of a batch one after the other."""
    threads = torch.get_num_threads()
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    if min(threads, len(flat) // _WORTH_A_THREAD) < 2:
        alone: Tensor = torch.linalg.svdvals(matrices)
        return alone
    # each thread by itself: a matrix is too small to be shared
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(torch.linalg.svdvals, flat.chunk(threads)))
    finally:
        torch.set_num_threads(threads)
    return torch.cat(parts).reshape(*matrices.shape[:-2], -1)


def effective_rank(matrices: Tensor) -> Tensor:
    r"""How many directions of each matrix are in use, ``[..., K, V] -> [...]`` fp64.

        p_i = sigma_i / sum_j sigma_j          erank = exp(-sum_i p_i ln p_i)

    Unit    effective dimensions, in [1, min(K, V)]; the scale of the matrix does not matter.
    NaN     for an all-zero or non-finite matrix: no direction exists to count.
    Source  Roy & Vetterli, "The effective rank", EUSIPCO 2007.

    >>> round(float(effective_rank(torch.eye(4))), 3)
    4.0
    """
    shares = _shares(matrices)
    rank: Tensor = torch.special.entr(shares).sum(-1).exp()
    return rank


def top_share(matrices: Tensor, count: int = 5) -> Tensor:
    """Share of the ``count`` largest singular values, ``[..., K, V] -> [...]``: legacy, printed and never judged.

    It rewards forgetting: for writes at random it falls as the memory lengthens. Read it beside ``spectrum_null``.
    """
    return _shares(matrices)[..., :count].sum(-1)


@lru_cache(maxsize=64)
def spectrum_null(rows: int, columns: int) -> SpectrumNull:
    """Effective rank and top-5 share of Gaussian noise ``[rows, columns]``, mean of 64 draws of a fixed seed."""
    generator = torch.Generator().manual_seed(NULL_SEED)
    noise = torch.randn(NULL_DRAWS, rows, columns, generator=generator, dtype=torch.float64)
    return SpectrumNull(float(effective_rank(noise).mean()), float(top_share(noise).mean()))
