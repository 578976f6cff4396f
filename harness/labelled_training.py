"""Training on examples that ask at some positions only, and what a model answers there.

``harness.training_loop`` learns every next token of one length; here are labels at a few positions and examples of
several lengths. Optimizer, autocast and kernels are the same.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.evaluation import autocast, to_device
from harness.labelled import IGNORED, Examples, LabelledConfig, LabelledOutcome, TaskError
from harness.labelled_step import LabelledStep
from harness.metrics.clustered import clustered_share
from harness.metrics.intervals import Interval
from harness.runtime import configure_cuda, seeded
from harness.step import exact_float32
from harness.trace import observing, state_after

EVALUATION_TOKENS = {"cpu": 8192, "cuda": 65_536}
"""Tokens of a batch of which only answers are read."""


def resolve_dtype(config: LabelledConfig, device: str) -> torch.dtype:
    """The dtype of matrix products on a device."""
    auto = "bfloat16" if device == "cuda" else "float32"
    return torch.bfloat16 if (auto if config.dtype == "auto" else config.dtype) == "bfloat16" else torch.float32


def train_labelled(
    model: nn.Module,
    train: Sequence[Examples],
    dev: Mapping[str, Examples],
    config: LabelledConfig,
    *,
    seed: int,
    device: str,
) -> LabelledOutcome:
    """Train ``model``, which the caller made under ``seeded(seed)``, in place on ``device``.

    The loss of an update is the mean cross entropy, in nats, over the labels of its batch. ``dev`` alone decides about
    an early end: test sets have no place here. On one CPU the same arguments give the same bits.
    Raises ``TaskError`` when there is nothing to learn from, or ``stop_at`` is given without ``dev``.
    """
    if not train or not all(len(examples) for examples in train):
        raise TaskError("train_labelled: a training set is empty; give at least one example of each")
    if config.stop_at is not None and not dev:
        raise TaskError("train_labelled: stop_at needs development sets, and there are none; give some, or no stop_at")
    if device == "cuda":
        configure_cuda()
    model.to(device).train()
    steps = config.epochs * sum(math.ceil(len(examples) / config.batch_size) for examples in train)
    dtype = resolve_dtype(config, device)
    losses: list[float] = []
    accuracies: list[float] = []
    status: Literal["finished", "stopped", "diverged"] = "finished"
    step, began_s = 0, time.monotonic()
    update = LabelledStep(model, train, config, steps=steps, dtype=dtype)
    with seeded(seed, "train"), exact_float32(), closing(update):
        for epoch in range(config.epochs):
            found: list[Tensor] = []
            for batch in epoch_batches(train, config.batch_size, seed, epoch):
                found.append(update(batch, step))
                step += 1
            losses.append(float(torch.stack(found).double().mean()))
            if not (math.isfinite(losses[-1]) and all(bool(p.isfinite().all()) for p in update.parameters)):
                status = "diverged"
                break
            if dev:
                accuracies.append(mean_accuracy(accuracies_of(model, dev, device=device, dtype=dtype)))
            if config.stop_at is not None and accuracies[-1] >= config.stop_at:
                status = "stopped"
                break
    model.eval()
    wall_s = time.monotonic() - began_s
    return LabelledOutcome(status, step, wall_s, tuple(losses), tuple(accuracies), update.choice.mode)


def epoch_batches(train: Sequence[Examples], batch_size: int, seed: int, epoch: int) -> Iterator[Examples]:
    """Every example once, in batches of one set each, in an order that follows from ``seed`` and ``epoch`` alone."""
    generator = np.random.default_rng([seed, epoch])
    batches: list[tuple[int, NDArray[np.int64]]] = []
    for index, examples in enumerate(train):
        order = generator.permutation(len(examples))
        batches += [(index, order[begin : begin + batch_size]) for begin in range(0, len(order), batch_size)]
    for place in generator.permutation(len(batches)):
        index, rows = batches[place]
        yield train[index].rows(rows)


def _answers(model: nn.Module, examples: Examples, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Logits ``[questions, V]`` at the labelled positions, row by row."""
    # found on the host, so that a GPU is not waited for
    places = np.flatnonzero(examples.asked)
    with autocast(device, dtype):
        logits_BTV: Tensor = model(to_device(examples.inputs, device))
    return logits_BTV.flatten(0, 1)[to_device(places, device)]


def predictions(
    model: nn.Module, examples: Examples, *, device: str, dtype: torch.dtype = torch.float32
) -> NDArray[np.int32]:
    """The likeliest next token of the whole vocabulary where something is asked, ``[n, L]``; elsewhere ``IGNORED``.

    Every example is read from a fresh state. The model's mode is left as it was.
    """
    found = np.full(examples.labels.shape, IGNORED, np.int32)
    rows = max(1, EVALUATION_TOKENS[device] // examples.length)
    answers: list[Tensor] = []
    with observing(model):
        for batch in examples.batches(rows):
            answers.append(_answers(model, batch, torch.device(device), dtype).argmax(-1))  # noqa: PERF401 (no graph)
    found[examples.asked] = torch.cat(answers).cpu().numpy()
    return found


def accuracy(predicted_nL: NDArray[np.int32], labels_nL: NDArray[np.int32]) -> Interval:
    """Mean over examples of the share of labels that were predicted; an example without a label does not count.

    The examples are the clusters, so the interval is that of as many independent shares. ``stale_values`` in place of
    ``labels`` gives how often an answer is out of date. NaN with bounds NaN where there is no label at all.
    """
    shares = right_shares(predicted_nL, labels_nL)
    if not len(shares):
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    return clustered_share(shares, np.arange(len(shares)))


def right_shares(predicted_nL: NDArray[np.int32], labels_nL: NDArray[np.int32]) -> NDArray[np.float64]:
    """Share of the labels that were predicted, of each example that has one."""
    asked_nL = labels_nL != IGNORED
    counted = asked_nL.any(1)
    right_nL = asked_nL & (predicted_nL == labels_nL)
    found: NDArray[np.float64] = right_nL.sum(1)[counted] / asked_nL.sum(1)[counted]
    return found


def accuracies_of(
    model: nn.Module, sets: Mapping[str, Examples], *, device: str, dtype: torch.dtype = torch.float32
) -> dict[str, Interval]:
    """Accuracy on each of some sets."""
    return {
        name: accuracy(predictions(model, examples, device=device, dtype=dtype), examples.labels)
        for name, examples in sets.items()
    }


def mean_accuracy(accuracies: Mapping[str, Interval]) -> float:
    """Mean over sets, each counted once."""
    return sum(interval.value for interval in accuracies.values()) / len(accuracies)


def long_state_bytes(model: nn.Module, length: int) -> int:
    """Bytes of the LONG states of one text of ``length`` tokens, counted on the tensors that the model returns.

    Constant in ``length`` for a recurrent model, and growing with it for a cache of keys and values.
    """
    tokens_BT = torch.zeros(1, length, dtype=torch.int64, device=next(model.parameters()).device)
    return sum(tensor.nbytes for _, tensor in state_after(model, tokens_BT).long_items())
