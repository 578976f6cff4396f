"""A small stateful language model with two branches, a corpus for it, and its training as a program.

``python toy.py DIRECTORY [STEP [SIGNAL]]`` trains in DIRECTORY and sends itself SIGNAL after update STEP.
"""

import math
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from harness.config import RunConfig, validate_config
from harness.data import Split, TokenDataset
from harness.runtime import seeded
from harness.train import train
from harness.training_job import TrainingPatch, TrainOutcome

VOCAB = 61


class ToyModel(nn.Module):
    """Embedding, a GRU beside a linear map, dropout (so that the random state matters), tied head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.mixer = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.embedding.weight

    def branch_modules(self) -> dict[str, list[nn.Module]]:
        return {"rwkv": [self.recurrent], "mamba": [self.mixer]}

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embedding(tokens_BT)
        x_BTD = x_BTD + self.recurrent(x_BTD)[0] + self.mixer(x_BTD)
        return self.head(self.dropout(self.norm(x_BTD)))


def toy_split(tokens: int, documents: int, seed: int) -> Split:
    # each token is its predecessor plus a small step: there is something to learn
    steps = np.random.Generator(np.random.Philox(key=seed)).integers(0, 3, size=tokens)
    offsets = np.linspace(0, tokens, documents + 1).astype(np.int64)
    names = tuple(f"document {i}" for i in range(documents))
    return Split((np.cumsum(steps) % VOCAB).astype(np.uint16), offsets, names, 0)


def toy_dataset() -> TokenDataset:
    return TokenDataset("toy", toy_split(4000, 5, 1), toy_split(1000, 4, 2), VOCAB, "c" * 64, "t" * 64, embedded=False)


def toy_config(train: dict | None = None, monitors: dict | None = None) -> RunConfig:
    fast = {
        "steps": 20,
        "batch_tokens": {"cpu": 64, "cuda": 64},
        "warmup_steps": 5,
        "threads": 1,
        "save_every": 10,
        "lr": 1e-2,
    }
    raw = {
        "scale": "toy",
        "data": {"corpus": "toy", "vocab_size": VOCAB, "seq_len": 16},
        "train": {**fast, **(train or {})},
        "eval": {"every_steps": 4, "tokens": 200, "final_tokens": 500},
        "monitors": {"update_every": 5, "probe_every": 5, **(monitors or {})},
    }
    return validate_config(raw, "toy")


class SignalPatch(TrainingPatch):
    """Sends this process a signal in the middle of an update."""

    def __init__(self, step: int, signum: int) -> None:
        self.at, self.signum = step, signum

    def gradients(self, model: nn.Module, step: int) -> None:
        if step == self.at:
            os.kill(os.getpid(), self.signum)


class Poison(TrainingPatch):
    """Makes numbers that are not finite: in a gradient, or in the weights when ``gradient`` is None."""

    name = "poison"

    def __init__(self, step: int, gradient: float | None) -> None:
        self.at, self.gradient = step, gradient

    def gradients(self, model: nn.Module, step: int) -> None:
        if step == self.at and self.gradient is not None:
            model.mixer.weight.grad.fill_(self.gradient)

    def after_step(self, model: nn.Module, step: int) -> None:
        if step == self.at and self.gradient is None:
            with torch.no_grad():
                model.mixer.weight.fill_(math.nan)


def toy_probe(model: nn.Module) -> dict[str, object]:
    """What a probe row may hold: numbers, lists by layer, nested; dropout would draw from the random state here."""
    tokens_BT = torch.arange(12, device=model.head.weight.device).view(2, 6)
    logits_BTV = model(tokens_BT)
    states_1BD = model.recurrent(model.embedding(tokens_BT))[1]
    rms = float(states_1BD.square().mean().sqrt())
    return {"rho_rwkv": float(logits_BTV.std()), "gate_mean": [None, 0.25], "state_rms": {"rwkv": [[rms], None]}}


def toy_train(
    directory: Path, *, config: RunConfig | None = None, seed: int = 3, device: str = "cpu", probe=toy_probe, **options
) -> tuple[ToyModel, TrainOutcome]:
    with seeded(seed):
        model = ToyModel()
    config = config or toy_config()
    outcome = train(model, toy_dataset(), config, directory, seed=seed, device=device, probe=probe, **options)
    return model, outcome


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[2:]]
    toy_train(Path(sys.argv[1]), patch=SignalPatch(*numbers) if numbers else TrainingPatch())
