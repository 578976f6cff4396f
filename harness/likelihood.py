"""Does a model use its context? Likelihood of a text given its own context and given another document's."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from harness.data import DataError, Windows
from harness.evaluation import autocast, to_device
from harness.metrics.intervals import ClusterRatio


def context_gain(
    model: nn.Module, windows: Windows, *, device: str, batch_size: int, dtype: torch.dtype = torch.float32
) -> ClusterRatio:
    r"""Nats a token that the right context is worth, by document.

        gain = E_t [ -ln p(x_{t+1} | y_{<=t}) + ln p(x_{t+1} | x_{<=t}) ],    y a window of another document

    A model that ignores its context, one trained on shuffled targets say, gives 0 in expectation: both terms hold the
    same target at the same position. Raises ``DataError`` when all windows come from one document.
    """
    assert batch_size >= 2
    half = batch_size // 2
    paired = _paired(windows, half)
    gains, counts, documents = [], [], []
    model.eval()
    with torch.inference_mode():
        for inputs, targets, rows in paired.batches(2 * half):
            size = len(rows) // 2
            with autocast(torch.device(device), dtype):
                logits_BTV = model(to_device(inputs, torch.device(device))).float()
            targets_BT = to_device(targets, torch.device(device))
            own_BT = _token_losses(logits_BTV, targets_BT)
            # the rows of the other half, in place of one's own context
            other_BT = _token_losses(logits_BTV.roll(size, 0), targets_BT)
            gains.append((other_BT - own_BT).double().sum(1).cpu().numpy())
            counts.append(np.full(len(rows), inputs.shape[1]))
            documents.append(rows)
    return ClusterRatio.of(np.concatenate(gains), np.concatenate(counts), np.concatenate(documents))


def _token_losses(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view(targets_BT.shape)


def _paired(windows: Windows, half: int) -> Windows:
    """The windows in an order in which rows i and i + size/2 of every batch come from different documents."""
    n = len(windows) // 2
    first, second = np.arange(n), np.arange(n) + len(windows) - n
    kept = windows.documents[first] != windows.documents[second]
    if not kept.any():
        raise DataError(
            "all validation windows come from one document, so there is no other context to compare with; "
            "give a corpus with at least two validation documents"
        )
    first, second = first[kept], second[kept]
    order = np.concatenate(
        [np.concatenate([first[i : i + half], second[i : i + half]]) for i in range(0, len(first), half)]
    )
    return Windows(windows.split, windows.length, windows.starts[order], windows.documents[order])
