"""Who writes the residual stream: the share of each branch in what both of them add to it (type A)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from harness.metrics.intervals import ClusterRatio


@dataclass
class _DocumentSums:
    """Sums over the positions of one document: C branches, width D, all fp64."""

    count: int
    linear_CD: Tensor  # noqa: N815 (shape suffix)
    products_CC: Tensor  # noqa: N815


@dataclass
class ActivationShares:
    r"""Running form of the type A shares of a layer, exact however the positions are split into batches.

        a_c = tr Cov(u_c, u) / tr Cov(u),    u = sum_c u_c

    u_c is what branch c adds to the residual stream, after gate and output projection; the covariance runs over
    documents and positions. Unit 1; the shares add up to 1. A negative one means that the branch cancels part of
    the other: published as it is. Independent writes of deviations alpha and beta give alpha^2 / (alpha^2 + beta^2).
    """

    branches: Sequence[str]
    _documents: dict[int, _DocumentSums] = field(default_factory=dict)

    def add(self, writes: Mapping[str, Tensor], documents: ArrayLike) -> None:
        """Take in one batch: ``[B, T, D]`` (or ``[B, D]``) a branch, and the document of each row ``[B]``."""
        u_CBTD = torch.stack([writes[branch].detach().double() for branch in self.branches])
        rows: NDArray[np.int64] = np.asarray(documents, dtype=np.int64)
        assert u_CBTD.shape[1] == len(rows)
        for row, document in enumerate(rows.tolist()):
            u_CND = u_CBTD[:, row].reshape(len(self.branches), -1, u_CBTD.shape[-1])
            new = _DocumentSums(u_CND.shape[1], u_CND.sum(1), torch.einsum("cnd,end->ce", u_CND, u_CND))
            old = self._documents.get(document)
            if old is not None:
                new = _DocumentSums(
                    old.count + new.count, old.linear_CD + new.linear_CD, old.products_CC + new.products_CC
                )
            self._documents[document] = new

    def shares(self) -> dict[str, ClusterRatio]:
        """Shares by branch, kept by document for ``bootstrap_ratio``; NaN where nothing varies."""
        assert self._documents, "add at least one batch first"
        sums = [self._documents[document] for document in sorted(self._documents)]
        count = sum(s.count for s in sums)
        mean_CD = torch.stack([s.linear_CD for s in sums]).sum(0) / count
        mean_D = mean_CD.sum(0)
        covariances_C = []
        for s in sums:
            # sum over positions of (u_c - mean_c) . (u - mean), expanded
            sum_D = s.linear_CD.sum(0)
            centred_C = s.products_CC.sum(1) - s.linear_CD @ mean_D - mean_CD @ sum_D + s.count * (mean_CD @ mean_D)
            covariances_C.append(centred_C.cpu().numpy())
        by_document = np.stack(covariances_C)
        total = by_document.sum(1)
        return {branch: ClusterRatio(by_document[:, c], total, count) for c, branch in enumerate(self.branches)}


def activation_shares(writes: Mapping[str, Tensor], documents: ArrayLike) -> dict[str, ClusterRatio]:
    """``ActivationShares`` of a single batch."""
    shares = ActivationShares(tuple(writes))
    shares.add(writes, documents)
    return shares.shares()


@dataclass
class Moments:
    """Mean square and variance of all entries of the tensors added, fp64; NaN when there is none."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> None:
        """Take in a tensor of any shape."""
        flat = values.detach().double().flatten()
        self.count += flat.numel()
        self.total += float(flat.sum())
        self.squares += float(flat @ flat)

    @property
    def rms(self) -> float:
        """Root of the mean square, in the unit of the values."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    @property
    def variance(self) -> float:
        """Variance over all entries together: what differs between channels or layers counts as well."""
        return max(self.squares / self.count - (self.total / self.count) ** 2, 0.0) if self.count else math.nan


def smaller_share(ratio: float) -> float:
    """Share of the smaller of two parts in the given ratio, either way round: f = 1 / (1 + r), r >= 1. In [0, 1/2].

    NaN for a NaN or negative ratio: a dead pair has no share.
    """
    if math.isnan(ratio) or ratio < 0:
        return math.nan
    return min(ratio, 1.0) / (1 + ratio) if ratio <= 1 else 1 / (1 + ratio)


def ratio_of_share(share: float) -> float:
    """Inverse of ``smaller_share``: r = (1 - f) / f, at least 1; infinite for 0, NaN outside [0, 1/2]."""
    if not 0 <= share <= 0.5:
        return math.nan
    return (1 - share) / share if share else math.inf
