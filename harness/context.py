"""Losses of fixed targets while only the start of their context moves: what D4 and the useful context rest on.

The targets are the last ``targets`` of each window and stay the same for every context c. They are read in rows of
exactly c tokens of which the last c/4 predictions count (at most all targets), so that every target sees between
3c/4 + 1 and c tokens of its own document, from a fresh state. One row a target would make that exactly c and cost
up to ``targets`` times as much; one row for all targets would show a target of "8 tokens" up to 39.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.batching import rows_at_once
from harness.data import Split, Windows
from harness.evaluation import autocast, to_device
from harness.metrics.context import ContextLosses, key_targets
from harness.trace import observing
from models.stack import ContextError

TARGETS = 32
"""Scored targets a window."""

NEAR = 32
"""A key target's earlier mention lies further back than this many tokens."""

SHORTEST = 4
"""A context of fewer tokens is not worth a row."""

DOCUMENTS = 8
"""Documents that must hold a context before it says anything of the corpus."""

BATCH_TOKENS = 2048


def scored(context: int, targets: int = TARGETS) -> int:
    """Predictions that count in a row of ``context`` tokens: a power of two, at most a quarter of it."""
    return min(targets, 1 << (max(context // 4, 1).bit_length() - 1))


def context_losses(
    model: nn.Module,
    windows: Windows,
    contexts: Sequence[int],
    *,
    device: str,
    key_span: int,
    dtype: torch.dtype = torch.float32,
    targets: int = TARGETS,
) -> ContextLosses:
    """Nats of the last ``targets`` targets of each window, by context.

    contexts  ascending; the longest is the length of the windows. A context for which the model raises
              ``ContextError`` (learned positions run out) is named in ``refused``, as are the longer ones
    key_span  a key target was mentioned at most this many tokens back, and not in the last ``NEAR``
    """
    assert contexts, "name at least one context"
    assert list(contexts) == sorted(set(contexts))
    assert max(contexts) == windows.length, "the longest context is the whole window"
    texts = np.concatenate([np.concatenate([x, y[:, -1:]], axis=1) for x, y, _ in windows.batches(len(windows))])
    first = windows.length - targets
    key_nT = np.array([[key_targets(text, first + i, NEAR, key_span) for i in range(targets)] for text in texts])
    sums: dict[int, list[float]] = {}
    key_sums: dict[int, list[float]] = {}
    refused: dict[int, str] = {}
    for context in contexts:
        try:
            losses_nT = _losses(model, texts, context, targets, device=device, dtype=dtype)
        except ContextError as error:
            refused |= {c: str(error) for c in contexts if c >= context}
            break
        sums[context] = losses_nT.sum(1).tolist()
        key_sums[context] = (losses_nT * key_nT).sum(1).tolist()
    return ContextLosses(windows.documents.tolist(), targets, sums, key_sums, key_nT.sum(1).tolist(), refused)


def _losses(
    model: nn.Module, texts: NDArray[np.uint16], context: int, targets: int, *, device: str, dtype: torch.dtype
) -> NDArray[np.float64]:
    """Loss of every target ``[n, targets]`` with at most ``context`` tokens before it."""
    group = scored(context, targets)
    assert targets % group == 0, f"{targets} targets do not fall into groups of {group}"
    # a row ends with the input of its last target
    ends = texts.shape[1] - 1 - targets + group * np.arange(1, targets // group + 1)
    assert ends[0] >= context, f"a window of {texts.shape[1] - 1} tokens is too short for a context of {context}"
    index = (ends - context)[:, None] + np.arange(context + 1)
    rows = texts[:, index].reshape(-1, context + 1)
    place = torch.device(device)
    losses: list[Tensor] = []
    batch = rows_at_once(max(1, BATCH_TOKENS // context), context, device)
    with observing(model):
        for begin in range(0, len(rows), batch):
            tokens = to_device(rows[begin : begin + batch], place)
            with autocast(place, dtype):
                logits_BgV = model(tokens[:, :-1])[:, -group:].float()
            losses.append(
                F.cross_entropy(logits_BgV.flatten(0, 1), tokens[:, -group:].flatten(), reduction="none").double().cpu()
            )
    return torch.cat(losses).view(len(texts), targets).numpy()


def octaves(split: Split, trained: int, *, beyond: bool) -> list[int]:
    """Contexts from a 16th of the trained length to 16 times it, by doubling, for the useful context.

    They end at the trained length unless ``beyond``, and before that where fewer than ``DOCUMENTS`` documents hold a
    window of that many tokens. Empty where even the trained length has too few documents.
    """
    lengths = np.diff(split.offsets)
    last = 16 * trained if beyond else trained
    wanted = [c for k in range(9) if SHORTEST <= (c := trained * 2**k // 16) <= last]
    contexts = [c for c in wanted if int((lengths > c).sum()) >= DOCUMENTS]
    return contexts if trained in contexts else []
