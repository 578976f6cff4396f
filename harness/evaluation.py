"""Cross entropy on fixed windows, kept apart by document."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data import Tokens, Windows


@dataclass(frozen=True)
class Evaluation:
    """What a model loses on a set of windows, in nats.

    documents ``[n]`` indices into the split; loss_sums ``[n]`` nats, token_counts ``[n]`` targets of each.
    """

    documents: NDArray[np.int64]
    loss_sums: NDArray[np.float64]
    token_counts: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Targets scored."""
        return int(self.token_counts.sum())

    @property
    def loss_nats(self) -> float:
        """Mean nats a token."""
        return float(self.loss_sums.sum() / self.tokens)

    @property
    def loss_se(self) -> float:
        """Standard error of ``loss_nats`` over documents (linearised ratio of sums); inf for a single document."""
        n = len(self.documents)
        if n < 2:
            return math.inf
        residuals = self.loss_sums - self.loss_nats * self.token_counts
        return math.sqrt(n / (n - 1) * float((residuals**2).sum())) / self.tokens


def to_device(tokens: Tokens | NDArray[np.int64], device: torch.device) -> Tensor:
    """Token ids or places ``[...]`` as int64 on the device."""
    found = torch.from_numpy(tokens.astype(np.int64))
    # from pageable memory a GPU copies only when it is done with what it has
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in ``dtype`` inside; nothing changes for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def evaluate(
    model: nn.Module,
    windows: Windows,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    before_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Score every target of ``windows`` from a fresh state, in fp32, in eval mode.

    ``before_batch`` runs ahead of each batch and may raise to abandon the work; the model's mode is restored.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    losses_n: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    try:
        with torch.inference_mode():
            for inputs, targets, documents in windows.batches(batch_size):
                if before_batch is not None:
                    before_batch()
                with autocast(device, dtype):
                    logits_BTV = model(to_device(inputs, device))
                loss_BT = F.cross_entropy(
                    logits_BTV.float().flatten(0, 1), to_device(targets, device).flatten(), reduction="none"
                ).view(inputs.shape)
                losses_n.append(loss_BT.double().sum(dim=1))
                rows.append(documents)
    finally:
        model.train(was_training)
    documents_n, place = np.unique(np.concatenate(rows), return_inverse=True)
    sums = np.bincount(place, weights=torch.cat(losses_n).cpu().numpy())
    counts = np.bincount(place) * windows.length
    return Evaluation(documents_n, sums.astype(np.float64), counts.astype(np.int64))
