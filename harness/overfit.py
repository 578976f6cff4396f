"""Can a model learn a small set by heart? Whoever cannot will not learn a corpus either, however its loss falls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from harness.config import TrainConfig
from harness.data import Tokens
from harness.evaluation import autocast, to_device
from harness.metrics.gradients import gradient_norm
from harness.optim import learning_rate, make_optimizer, set_learning_rate
from harness.thresholds import Bands
from harness.training_job import NO_PATCH, TrainingPatch

STEPS, WARMUP_STEPS = 500, 20


@dataclass(frozen=True)
class Goal:
    """What counts as known by heart: mean loss at most this, in nats, and at least this share of targets on top."""

    loss: float
    accuracy: float

    @classmethod
    def of(cls, bands: Mapping[str, Bands]) -> Self:
        """The ends of the pass bands of the table ``thresholds.of("OVERFIT")``."""
        return cls(bands["final_loss"].pass_band[1], bands["accuracy"].pass_band[0])


@dataclass(frozen=True)
class Memorised:
    """How far a model came.

    loss, accuracy  nats a target and share of targets ranked first, after the last update, in eval mode
    steps           updates made; fewer than allowed when the goal was reached, or the loss was no number
    reached         whether both are within the goal
    losses          nats a target before each update
    """

    loss: float
    accuracy: float
    steps: int
    reached: bool
    losses: tuple[float, ...]


def memorising_config(preset: TrainConfig) -> TrainConfig:
    """A preset's optimizer at its learning rate after a short warm-up, without decay of rate or weights."""
    changes = {"steps": STEPS, "warmup_steps": WARMUP_STEPS, "decay_fraction": 0.0, "weight_decay": 0.0,
               "checkpoint_steps": ()}  # fmt: skip
    return preset.model_copy(update=changes)


def memorise(
    model: nn.Module,
    inputs: Tokens,
    targets: Tokens,
    config: TrainConfig,
    goal: Goal,
    *,
    device: str,
    dtype: torch.dtype,
    seed: int,
    patch: TrainingPatch = NO_PATCH,
) -> Memorised:
    """Train ``model`` in place on ``[B, T]`` inputs and targets, all of them at every step, until the goal is reached.

    It ends after ``config.steps`` updates, and at a loss that is not finite: that loss is then the result.
    """
    place = torch.device(device)
    model.to(place).train()
    optimizer = make_optimizer(model, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: list[float] = []
    for step in range(config.steps):
        batch = patch.batch(inputs, targets, seed=seed, step=step)
        tokens_BT, targets_BT = (to_device(part, place) for part in batch)
        with autocast(place, dtype):
            logits_BTV = model(tokens_BT)
        loss = kernels.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        patch.gradients(model, step)
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, gradient_norm(parameters))
        set_learning_rate(optimizer, learning_rate(step, config))
        optimizer.step()
        optimizer.zero_grad()
        patch.after_step(model, step)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return Memorised(losses[-1], 0.0, step + 1, False, tuple(losses))
        if losses[-1] <= goal.loss or step + 1 == config.steps:
            known, share = recite(model, inputs, targets, dtype)
            reached = known <= goal.loss and share >= goal.accuracy
            if reached or step + 1 == config.steps:
                return Memorised(known, share, step + 1, reached, tuple(losses))
    raise AssertionError("a training has at least one step")


def recite(model: nn.Module, inputs: Tokens, targets: Tokens, dtype: torch.dtype) -> tuple[float, float]:
    """Mean loss in nats and share of ``[B, T]`` targets with the highest logit, in eval mode; the mode is restored."""
    place = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast(place, dtype):
            logits_NV: Tensor = model(to_device(inputs, place)).float().flatten(0, 1)
    finally:
        model.train(was_training)
    targets_N = to_device(targets, place).flatten()
    loss = F.cross_entropy(logits_NV.double(), targets_N)
    return float(loss), float((logits_NV.argmax(-1) == targets_N).double().mean())
