"""Trainings of a small hybrid on a GPU, graphed and not, as JSON: ``python graphed_training.py DIRECTORY``.

A program, since torch.compile cannot trace the checks of shapes that the tests put into kernels and models.
"""

import hashlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from toy import VOCAB, toy_config, toy_dataset

from harness.beginnings import read_origin
from harness.runlog import read_rows
from harness.runtime import seeded
from harness.step import TrainingStep
from harness.train import train
from harness.training_job import NO_PATCH, TrainingPatch
from models import get_model

STEPS = 50


class SignalledBatch(TrainingPatch):
    """Ctrl-C between two updates: the updates themselves are left alone, so they stay graphed."""

    def __init__(self, step: int) -> None:
        self.at = step

    def batch(self, inputs, targets, *, seed, step):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return inputs, targets


def weights_of(model) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def run(
    directory: Path, *, device="cuda", seed=3, patch=NO_PATCH, scale="1.2M", begins_as=None, keeps=False, **options
) -> dict:
    """One training: its losses, its log and its weights by their hashes, and what the header says."""
    fast = {"steps": STEPS, "lr": 2e-3, "warmup_steps": 5, "save_every": 20, "threads": 2}
    config = toy_config({**fast, "batch_tokens": {"cpu": 512, "cuda": 512}, **options})
    with seeded(seed):
        model = get_model("GF-MH", scale=scale, vocab_size=VOCAB)
    outcome = train(
        model, toy_dataset(), config, directory, seed=seed, device=device, patch=patch,
        begins_as=begins_as, keeps_beginning=keeps,
    )  # fmt: skip
    rows = read_rows(directory, "step")
    header = read_rows(directory, "header")[0]
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "execution": header["execution"],
        "loss": [row["loss"] for row in rows],
        "update_ratio": [row["update_ratio_rwkv"] for row in rows if "update_ratio_rwkv" in row],
        "log": hashlib.sha256((directory / "metrics.jsonl").read_bytes()).hexdigest(),
        "weights": weights_of(model),
    }


def interrupted(directory: Path, steps: list[int]) -> dict:
    """A training that was stopped at each of ``steps`` and taken up again."""
    for step in steps:
        try:
            run(directory, patch=SignalledBatch(step))
        except KeyboardInterrupt:
            continue
        raise AssertionError("the signal stops it")
    return run(directory)


def begun(directory: Path) -> dict:
    """A training that begins, at step 20, as one of half its steps."""
    run(directory / "shorter", steps=STEPS // 2, keeps=True)
    found = run(directory / "longer", begins_as=directory / "shorter")
    return {**found, "origin": asdict(read_origin(directory / "longer"))}


def updates(mode: str, **options) -> dict:
    """Rows of some updates and the weights after them, without the loop around them."""
    config = toy_config({"steps": STEPS, "lr": 2e-3, **options}).train
    with seeded(3):
        model = get_model("GF-MH", scale="1.2M", vocab_size=VOCAB).cuda()
    step = TrainingStep(model, config, dtype=torch.bfloat16, mode=mode)
    rows = [step(*toy_dataset().training_batch(3, index, 32, 16), index) for index in range(8)]
    found = {"rows": torch.stack(rows).tolist(), "weights": weights_of(model)}
    step.close()
    return found


# At 2e-3 two trainings part by themselves: a change of the weights by one part in 10^7 grows to .016 nat in 50 updates
GENTLE = {"dtype": "float32", "scale": "3.5M", "lr": 3e-4}


def main() -> None:
    root = Path(sys.argv[1])
    found = {
        "graphed": run(root / "graphed"),
        "again": run(root / "again"),
        "eager": run(root / "eager", execution="eager"),
        "other_seed": run(root / "other_seed", seed=4),
        "resumed": interrupted(root / "resumed", [1, 2, 3, 30]),
        "begun": begun(root / "begun"),
        "fp32": run(root / "fp32", **GENTLE),
        "fp32_eager": run(root / "fp32_eager", **GENTLE, execution="eager"),
        "fp32_cpu": run(root / "fp32_cpu", **GENTLE, device="cpu"),
        "accumulated": run(root / "accumulated", **GENTLE, grad_accumulation=4),
        "diverged": run(root / "diverged", lr=1e30),
        "without_the_loop": {mode: updates(mode) for mode in ("compiled", "graphed")},
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
