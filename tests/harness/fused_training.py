"""Losses of eager and of compiled updates of one small hybrid, as JSON.

A program, since torch.compile cannot trace the checks of shapes that the tests put into kernels and models.
"""

import functools
import json
import sys

import torch
from toy import VOCAB, toy_config, toy_dataset

from harness.config import TrainConfig
from harness.runtime import configure_cpu, seeded
from harness.step import TrainingStep
from models import get_model

STEPS = 25


def losses(mode: str, dtype: torch.dtype, seed: int = 3, **options) -> list[float]:
    """The loss before each update, and after the last name the other numbers of the row."""
    config: TrainConfig = toy_config({"steps": STEPS, "lr": 2e-3, **options}).train
    with seeded(seed):
        model = get_model("GF-MH", scale="1.2M", vocab_size=VOCAB)
    # the graphs that inductor gets, without the code that it makes of them
    model.capturable_forward = functools.partial(model.capturable_forward, "aot_eager")
    step = TrainingStep(model, config, dtype=dtype, mode=mode)
    rows = []
    for index in range(STEPS):
        batch = toy_dataset().training_batch(seed, index, 4, 16)
        rows.append(dict(zip(step.names, step(*batch, index).tolist(), strict=True)))
    return rows


def main() -> None:
    configure_cpu(1)
    fp32, bf16 = torch.float32, torch.bfloat16
    found = {
        "eager": losses("eager", fp32),
        "compiled": losses("compiled", fp32),
        "accumulated": losses("compiled", fp32, grad_accumulation=2),
        "eager_bf16": losses("eager", bf16),
        "compiled_bf16": losses("compiled", bf16),
        "other_seed_bf16": losses("eager", bf16, seed=4),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
