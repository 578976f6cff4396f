"""Trainings of small hybrids at once on a GPU, and alone, as JSON: ``python team_training.py DIRECTORY``.

A program, since torch.compile cannot trace the checks of shapes that the tests put into kernels and models.
"""

import functools
import hashlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from graphed_training import SignalledBatch
from toy import VOCAB, toy_config, toy_dataset

import harness.team
from fixtures.training import state_probe
from harness.execution import read_execution
from harness.runtime import seeded
from harness.train import run_job
from harness.training_files import read_outcome
from harness.training_job import NO_PATCH, TrainingPatch, TrainJob
from models import get_model

SEEDS = (3, 4, 5)
STEPS = 160


class PoisonedWeights(TrainingPatch):
    """Weights that are not finite from an update on; the updates themselves are left alone, so they stay graphed."""

    def __init__(self, step: int) -> None:
        self.at, self.model = step, None

    def batch(self, inputs, targets, *, seed, step):
        if step == self.at:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(math.nan)
        return inputs, targets


def job(directory: Path, seed: int, *, patch=NO_PATCH, **options) -> TrainJob:
    """A training with evaluations and probes far enough apart that there are whole blocks of updates to measure."""
    fast = {"steps": STEPS, "lr": 2e-3, "warmup_steps": 5, "save_every": 60}
    config = toy_config(
        {**fast, "batch_tokens": {"cpu": 512, "cuda": 512}, "checkpoint_steps": [STEPS // 2], **options},
        {"update_every": 7, "probe_every": 50},
    )
    config = config.model_copy(update={"eval": config.eval.model_copy(update={"every_steps": 50})})
    with seeded(seed):
        model = get_model("GF-MH", scale="1.2M", vocab_size=VOCAB)
    if isinstance(patch, PoisonedWeights):
        patch.model = model
    probe = state_probe(model, toy_dataset(), config, "cuda")
    return TrainJob(model, toy_dataset(), config, directory, seed, "cuda", patch, probe=probe)


def told(directory: Path) -> dict:
    """A training that has ended: its log and its weights at two steps by their hashes, how it ended and how it ran."""
    found = sorted(directory.glob("checkpoints/*/*.safetensors"))
    execution = read_execution(directory)
    outcome = read_outcome(directory)
    return {
        "bits": {
            path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in [directory / "metrics.jsonl", *found]
        },
        "ended": [outcome.status, outcome.steps, outcome.reason],
        "execution": execution and asdict(execution),
    }


def alone(root: Path) -> list[dict]:
    """One after another, as ``train`` does it."""
    for seed in SEEDS:
        run_job(job(root / str(seed), seed))
    return [told(root / str(seed)) for seed in SEEDS]


def together(root: Path, odd_one=lambda seed: {}) -> list[dict]:
    """All at once; ``odd_one`` says what is different about the training of a seed."""
    jobs = [functools.partial(job, root / str(seed), seed, **odd_one(seed)) for seed in SEEDS]
    ended = []
    harness.team.train_together(jobs, lambda index, outcome: ended.append(index))
    assert sorted(ended) == [0, 1, 2], "each is told of once"
    return [told(root / str(seed)) for seed in SEEDS]


def with_second(**options):
    """``odd_one`` for the second seed."""
    return lambda seed: options if seed == SEEDS[1] else {}


def interrupted(root: Path, step: int) -> list[dict]:
    """Ctrl-C in an update of the second seed, then all taken up again."""
    try:
        together(root, with_second(patch=SignalledBatch(step)))
    except KeyboardInterrupt:
        return together(root)
    raise AssertionError("the signal stops it")


def main() -> None:
    root = Path(sys.argv[1])
    found = {"alone": alone(root / "alone"), "as_measured": together(root / "as_measured")}
    measured = harness.team.choose
    harness.team.choose = lambda *given: ("together", measured(*given)[1])
    found |= {
        "together": together(root / "together"),
        "beside_a_divergence": together(root / "diverged", with_second(patch=PoisonedWeights(130))),
        "resumed": {step: interrupted(root / f"resumed-{step}", step) for step in (30, 130)},
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
