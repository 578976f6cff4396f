"""One update on examples that ask at some positions: what ``harness.step`` does for every next token.

Full batches are graphed where trainings on every next token are (``harness.step.choose``), one CUDA graph a length. The
rows that remain at the end of an epoch are too few to pay for one: they are an eager update.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.evaluation import autocast, to_device
from harness.labelled import IGNORED, Examples, LabelledConfig
from harness.optim import make_optimizer, set_learning_rate
from harness.step import Captured, choose


class LabelledStep:
    """Updates of one model, which must be where it is to be trained, on batches of ``train``.

    choice  how it takes them, and why
    """

    def __init__(
        self, model: nn.Module, train: Sequence[Examples], config: LabelledConfig, *, steps: int, dtype: torch.dtype
    ) -> None:
        optimizer_config = config.optimizer_config(steps)
        self.model, self.config, self.steps, self.dtype = model, config, steps, dtype
        self.optimizer = make_optimizer(model, optimizer_config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.choice = choose(model, optimizer_config, self.device.type)
        self.fused: Callable[[Tensor], Tensor] | None = None
        if self.choice.mode == "graphed":
            self.fused = model.capturable_forward()  # type: ignore[operator]
        self.most_asked: dict[int, int] = {}
        for examples in train:
            most = int(examples.asked.sum(1).max())
            self.most_asked[examples.length] = max(most, self.most_asked.get(examples.length, 0))
        self.captured: dict[int, Captured] = {}

    def __call__(self, batch: Examples, step: int) -> Tensor:
        """Take update ``step`` (from 0) and return its loss, nats a label, on the device, without waiting."""
        set_learning_rate(self.optimizer, self.config.learning_rate(step, self.steps))
        rows, length = batch.inputs.shape
        if self.fused is None or rows < self.config.batch_size:
            return self._update(self.model, to_device(packed(batch, int(batch.asked.sum())), self.device), rows, length)
        if length not in self.captured:
            fused = self.fused
            example = to_device(self._padded(batch), self.device)
            self.captured[length] = Captured(lambda held: self._update(fused, held, rows, length), example)
        return self.captured[length](to_device(self._padded(batch), self.device))

    def close(self) -> None:
        """Free the graphs and the memory in their pools."""
        for captured in self.captured.values():
            captured.close()
        self.captured = {}

    def _padded(self, batch: Examples) -> NDArray[np.int64]:
        """Packed as every batch of its length is: a graph takes one shape."""
        return packed(batch, len(batch) * self.most_asked[batch.length])

    def _update(self, forward: Callable[[Tensor], Tensor], held: Tensor, rows: int, length: int) -> Tensor:
        loss = labelled_loss(forward, held, rows, length, self.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def packed(batch: Examples, places: int) -> NDArray[np.int64]:
    """Inputs, the ``places`` where something is asked and what, in one array ``[rows * length + 2 places]``.

    Places beyond the labels of the batch ask nothing: their target is ``IGNORED``.
    """
    asked = np.flatnonzero(batch.asked)
    fill = places - len(asked)
    assert fill >= 0, "places hold every label of the batch"
    where = np.pad(asked, (0, fill))
    targets = np.pad(batch.labels[batch.asked], (0, fill), constant_values=IGNORED)
    return np.concatenate((batch.inputs.ravel(), where, targets), dtype=np.int64)


def labelled_loss(
    forward: Callable[[Tensor], Tensor], held: Tensor, rows: int, length: int, dtype: torch.dtype
) -> Tensor:
    """Mean cross entropy over the labels of a packed batch, nats."""
    inputs, rest = held[: rows * length], held[rows * length :]
    where, targets = rest.chunk(2)
    with autocast(held.device, dtype):
        logits_BTV = forward(inputs.view(rows, length))
    # found on the host, so that a GPU is not waited for
    return F.cross_entropy(logits_BTV.flatten(0, 1)[where].float(), targets, ignore_index=IGNORED)
