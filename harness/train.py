"""Train one model, or go on with a training that was interrupted."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from harness.config import BatchTokens, RunConfig
from harness.data import TokenDataset
from harness.events import Monitor
from harness.progress import Progress
from harness.runtime import configure_cpu, deferred_interrupt, seeded
from harness.step import exact_float32
from harness.training_job import NO_PATCH, Probe, TrainError, TrainingPatch, TrainJob, TrainOutcome
from harness.training_loop import Loop


def train(
    model: nn.Module,
    dataset: TokenDataset,
    config: RunConfig,
    directory: Path,
    *,
    seed: int,
    device: str,
    patch: TrainingPatch = NO_PATCH,
    monitors: Sequence[Monitor] = (),
    probe: Probe | None = None,
    progress: Progress | None = None,
    begins_as: Path | None = None,
    keeps_beginning: bool = False,
) -> TrainOutcome:
    """Train ``model`` in place, or go on with the training that ``directory`` holds, and write everything there.

    ``metrics.jsonl`` (``harness.runlog``), ``checkpoints/step-*`` (``harness.checkpoint``; the last is resumable) and
    ``outcome.json``. The caller initialises the model, under ``seeded(seed)``. Ctrl-C ends the current step, saves
    and raises KeyboardInterrupt; after a kill the next call goes on from the last periodic checkpoint. Either way
    the result is bit-equal to an uninterrupted run. A training that already ended is returned as it is, with the
    model's weights as they were at its end (a diverged one leaves the model alone).

    ``monitors`` see every row of the log; ``probe`` looks inside the model every ``monitors.probe_every`` updates, at
    the end of the warm-up and after the last update. It changes nothing of the training.

    ``begins_as`` is the directory of a training that differs in ``train.steps`` alone, is shorter, has ended, and was
    told to keep its beginning with ``keeps_beginning`` (``harness.beginnings``): then only what comes after that is
    trained, unless ``directory`` holds a state already. Log and weights are bit-equal to those of a training from its
    first step; ``beginning.json`` tells of it.

    Raises ``TrainError``, ``StepError``, ``CheckpointError``, ``RunLogError`` and ``BeginningError``.
    """
    return run_job(
        TrainJob(
            model,
            dataset,
            config,
            directory,
            seed,
            device,
            patch,
            monitors,
            probe,
            progress,
            begins_as,
            keeps_beginning,
        )
    )


def run_job(job: TrainJob) -> TrainOutcome:
    """``train`` with its arguments in one."""
    configure(job)
    with (
        seeded(job.seed, "train"),
        exact_float32(),
        deferred_interrupt() as interrupt,
        closing(Loop(job, interrupt).turns()) as turns,
    ):
        while True:
            try:
                next(turns)
            except StopIteration as ended:
                outcome: TrainOutcome = ended.value
                return outcome


def configure(job: TrainJob) -> None:
    """Make the directory of a training and bring its device into the state that it starts from.

    Raises ``TrainError`` for a device that does not exist.
    """
    if job.device not in BatchTokens.model_fields:
        allowed = ", ".join(BatchTokens.model_fields)
        raise TrainError(f"device {job.device}: there is no such device; allowed: {allowed}")
    job.directory.mkdir(parents=True, exist_ok=True)
    if job.device == "cpu":
        configure_cpu(job.config.train.threads)
    else:
        # its random state is saved and restored by seeded() only once it exists
        torch.cuda.init()  # type: ignore[no-untyped-call]
