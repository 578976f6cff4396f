"""G2: how far a model is from knowing nothing. Entropy and loss at initialisation as shares of ln V."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Rows are taken a few at a time so that no second array of the size of the logits is made
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class GaussianInit:
    """What logits drawn from N(0, std^2) give over a vocabulary: entropy and loss, nats a token."""

    entropy_nats: float
    loss_nats: float


@dataclass
class EntropyShare:
    """Mean entropy over many batches, as a share of the largest possible one: the running form of ``entropy_share``.

    ``total`` is the sum of per-position shares in fp64, ``positions`` how many there were.
    """

    total: float = field(default=0.0)
    positions: int = field(default=0)

    def add(self, logits_BTV: Tensor) -> None:
        """Take in the logits of one batch, ``[..., V]``."""
        vocab_size = logits_BTV.shape[-1]
        assert vocab_size > 1
        for rows_NV in _row_chunks(logits_BTV):
            self.total += float(softmax_entropy(rows_NV).sum()) / math.log(vocab_size)
            self.positions += rows_NV.shape[0]

    @property
    def value(self) -> float:
        """The mean share; NaN before the first batch or after a non-finite logit."""
        return self.total / self.positions if self.positions else math.nan


def _row_chunks(values: Tensor) -> Iterator[Tensor]:
    rows_NV = values.detach().reshape(-1, values.shape[-1])
    yield from torch.split(rows_NV, max(CHUNK_ELEMENTS // values.shape[-1], 1))


def softmax_entropy(logits: Tensor) -> Tensor:
    r"""Entropy of softmax along the last dimension, ``[..., V] -> [...]`` fp64, in nats.

        H = ln sum_v exp(z_v) - sum_v p_v z_v,    z = logits - max

    In this form equal logits give ln V without rounding and one dominant logit gives 0. Exponentials are fp32 at
    least, sums fp64. NaN where a logit is NaN or +inf; a logit of -inf is a token that cannot occur.
    """
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = values - values.amax(-1, keepdim=True)
    weight = z.exp()
    total = weight.sum(-1, dtype=torch.float64)
    # exp(-inf) * -inf is NaN where the limit is 0; a NaN of the input stays
    moment = torch.where(z == -math.inf, 0.0, weight * z).sum(-1, dtype=torch.float64)
    return total.log() - moment / total


def entropy_share(logits: Tensor) -> float:
    """Mean of H / ln V over all positions of ``[..., V]``: 1 is uniform, 0 certain. Unit 1.

    On hidden states ``[..., D]`` this is the legacy ``hidden_softmax_entropy``, bounded by ln D and never judged.
    NaN when a logit is NaN or +inf, or there is no position.
    """
    share = EntropyShare()
    share.add(logits)
    return share.value


def initial_loss_ratio(loss_nats: float, vocab_size: int) -> float:
    """Loss before the first update over ln V: 1 is chance, more is confident and wrong. Unit 1."""
    assert vocab_size > 1
    return loss_nats / math.log(vocab_size)


def gaussian_init(std: float, vocab_size: int) -> GaussianInit:
    r"""Entropy and loss of logits ~ N(0, std^2) against targets they know nothing of.

        H = ln V - std^2 / 2        L0 = ln V + std^2 / 2

    Both are NaN from std = sqrt(2 ln V) / 2 on, where a few largest logits begin to carry the sum and the
    expansion no longer holds. Source: the random energy model, Derrida, Phys. Rev. B 24 (1981) 2613.
    """
    assert vocab_size > 1
    ceiling = math.log(vocab_size)
    if not 0 <= std < math.sqrt(2 * ceiling) / 2:
        return GaussianInit(math.nan, math.nan)
    return GaussianInit(ceiling - std**2 / 2, ceiling + std**2 / 2)
