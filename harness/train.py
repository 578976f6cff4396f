"""The training loop: one for every model, corpus, device and mutant.

Batches are windows at random places, a function of the seed and the step alone. Recurrent state is therefore not
carried from one batch to the next: each window starts from the model's initial state.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import beginnings
from harness.checkpoint import load_training, load_weights, save_training, save_weights, verify, write_synced
from harness.config import BatchTokens, RunConfig, config_sha256
from harness.data import TokenDataset, Tokens
from harness.errors import HarnessError
from harness.evaluation import evaluate
from harness.events import Monitor
from harness.hashing import canonical_json
from harness.optim import learning_rate
from harness.probe_row import summary
from harness.progress import Progress
from harness.runlog import RunLog
from harness.runtime import CleanInterrupt, Interrupt, configure_cpu, deferred_interrupt, seeded
from harness.step import TrainingStep, choose, exact_float32
from harness.trace import observing

OUTCOME, CHECKPOINTS, RESUME = "outcome.json", "checkpoints", "resume"

# Reading a number off a GPU waits for it, so rows are collected there and read together.
_CUDA_ROWS = 20

# Rows of an evaluation batch, at least: a forward pass on two rows leaves a fifth of the processor idle.
_EVAL_ROWS = 8


class TrainError(HarnessError):
    """The training cannot be run as asked. The message says why."""


class TrainingPatch:
    """What a subject changes in its own training: nothing. A mutant broken in training overrides a hook.

    ``name`` enters the store's key. ``step`` counts updates from 0.
    """

    name = "none"

    def batch(self, inputs: Tokens, targets: Tokens, *, seed: int, step: int) -> tuple[Tokens, Tokens]:
        """The batch ``[B, T]`` that the model is to see instead. Must be a function of its arguments."""
        return inputs, targets

    def gradients(self, model: nn.Module, step: int) -> None:
        """Change ``parameter.grad`` before it is measured and clipped."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change the weights after the update."""

    @property
    def looks_inside(self) -> bool:
        """Whether it changes gradients or weights, and not only batches."""
        return any(
            getattr(type(self), hook) is not getattr(TrainingPatch, hook) for hook in ("gradients", "after_step")
        )


NO_PATCH = TrainingPatch()

Probe = Callable[[nn.Module], Mapping[str, Any]]
"""A look inside the model, logged as a ``probe`` row (``harness.probe_row``): in eval mode, without a graph."""

Turns = Generator[int, None, "TrainOutcome"]
"""A training in turns: yields the updates of a turn whose numbers are still to be read (0 after an evaluation, a probe
or a checkpoint) and returns how it ended."""


@dataclass(frozen=True)
class TrainJob:
    """One training: what ``train`` is given.

    begins_as        directory of a shorter one that has ended and kept its beginning (``harness.beginnings``)
    keeps_beginning  whether it leaves one itself
    """

    model: nn.Module
    dataset: TokenDataset
    config: RunConfig
    directory: Path
    seed: int
    device: str
    patch: TrainingPatch = NO_PATCH
    monitors: Sequence[Monitor] = ()
    probe: Probe | None = None
    progress: Progress | None = None
    begins_as: Path | None = None
    keeps_beginning: bool = False


@dataclass(frozen=True)
class TrainOutcome:
    """How a training ended.

    finished  all steps done       diverged  loss or gradient norm was not finite       stopped  a monitor's STOP
    steps     updates done; for a diverged run those before the one that showed it
    wall_s    seconds of all processes that worked on it, on a beginning that it shares with another training, too
    """

    status: Literal["finished", "diverged", "stopped"]
    steps: int
    reason: str
    wall_s: float


def resolve_dtype(config: RunConfig, device: str) -> torch.dtype:
    """The dtype of the matrix products on a device."""
    auto = "bfloat16" if device == "cuda" else "float32"
    return (
        torch.bfloat16
        if (auto if config.train.dtype == "auto" else config.train.dtype) == "bfloat16"
        else torch.float32
    )


def checkpoint_directory(directory: Path, step: int) -> Path:
    """Where the weights after ``step`` updates are kept."""
    return directory / CHECKPOINTS / f"step-{step:06d}"


def checkpoint_steps(directory: Path) -> list[int]:
    """The steps whose weights the training in a directory has kept, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in directory.glob(f"{CHECKPOINTS}/step-??????"))


def read_outcome(directory: Path) -> TrainOutcome | None:
    """How the training in a directory ended; None when it has not."""
    path = directory / OUTCOME
    return TrainOutcome(**json.loads(path.read_text(encoding="utf8"))) if path.is_file() else None


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


class _Ended(Exception):  # noqa: N818 (a way out of the loop, not an error)
    """The training is over before its last step."""

    def __init__(self, status: Literal["diverged", "stopped"], step: int, reason: str) -> None:
        super().__init__(reason)
        self.status: Literal["diverged", "stopped"] = status
        self.step, self.reason = step, reason


@dataclass(frozen=True)
class _Pending:
    """A step's row whose numbers may still be on the device."""

    step: int
    lr: float
    names: tuple[str, ...]
    values: Tensor


class Loop:
    """The state of one training. Between two phases (evaluate, save, update) everything can be saved.

    It expects what ``train`` arranges: torch's random state is the training's own, and fp32 products are exact.

    choice  how it takes its updates
    """

    def __init__(self, job: TrainJob, interrupt: Interrupt) -> None:
        dataset, config, seed, device, patch = job.dataset, job.config, job.seed, job.device, job.patch
        model = job.model.to(device)
        self.model, self.dataset, self.config, self.directory = model, dataset, config, job.directory
        self.device, self.dtype = torch.device(device), resolve_dtype(config, device)
        self.patch, self.monitors, self.probe = patch, job.monitors, job.probe
        self.progress, self.interrupt = job.progress, interrupt
        self.begins_as, self.keeps_beginning = job.begins_as, job.keeps_beginning
        if patch.looks_inside and (job.begins_as is not None or job.keeps_beginning):
            raise TrainError(
                f"patch {patch.name}: it changes gradients or weights and may remember what no checkpoint holds, so "
                f"this training shares its beginning with none; leave out begins_as and keeps_beginning"
            )
        self.batch_tokens: int = getattr(config.train.batch_tokens, device)
        self.batch_size = self.batch_tokens // config.data.seq_len
        self.choice = choose(model, config.train, device, patch.name if patch.looks_inside else "")
        self.update = TrainingStep(
            model,
            config.train,
            dtype=self.dtype,
            mode=self.choice.mode,
            before_clip=patch.gradients if patch.looks_inside else None,
            after_update=patch.after_step if patch.looks_inside else None,
        )
        # to stop at the same step wherever it runs, a run that may stop looks at every row at once
        self.rows_at_once = _CUDA_ROWS if device == "cuda" and not config.monitors.stop else 1
        self.identity = {
            "config_sha256": config_sha256(config),
            "corpus_sha256": dataset.corpus_sha256,
            "tokenizer_sha256": dataset.tokenizer_sha256,
            "seed": seed,
            "device": device,
            "patch": patch.name,
            "execution": self.choice.mode,
        }
        self.seed, self.step, self.next_batch = seed, 0, 0
        # before the first update a probe sees nothing: an output matrix may start at zero
        self.evaluated_step, self.probed_step = -1, 0
        self.inside = ""
        self.pending: list[_Pending] = []
        self.saved: tuple[int, int, int] | None = None
        self.started_s = time.monotonic()

    def turns(self) -> Turns:
        """All phases in order, from wherever the directory stands, with a pause after each turn.

        At a pause the device may still be busy with the turn, and nothing of the process is changed.
        """
        ended = read_outcome(self.directory)
        if ended is not None:
            if ended.status != "diverged":
                load_weights(checkpoint_directory(self.directory, ended.steps), self.model)
            return ended
        self.log = self._open()
        if self.progress is not None:
            self.progress.begin(self.config.train.steps, self.step)
        try:
            try:
                yield from self._train()
                return self._finish("finished", "all steps done")
            except _Ended as over:
                return self._finish(over.status, over.reason, over.step)
            except CleanInterrupt:
                self._save()
                raise
        finally:
            self.update.close()
            self.log.close()
            if self.progress is not None:
                self.progress.end()

    def _open(self) -> RunLog:
        """The state of the newest checkpoint and its log, a beginning and its log, or a new log with its header."""
        found = sorted(path for path in self.directory.glob(f"{RESUME}/step-*") if path.suffix != ".partial")
        if found:
            return self._resume(found[-1])
        if self.begins_as is not None:
            return self._begin_as(self.begins_as)
        # from a run that was killed before its first checkpoint
        (self.directory / beginnings.FILE).unlink(missing_ok=True)
        log = RunLog(self.directory)
        log.write(self._header())
        return log

    def _header(self) -> dict[str, Any]:
        header: dict[str, Any] = {
            "kind": "header",
            **self.identity,
            "execution_reason": self.choice.reason,
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": self.config.train.steps,
            "batch_tokens": self.batch_tokens,
            "seq_len": self.config.data.seq_len,
            "num_params": sum(p.numel() for p in self.update.parameters),
        }
        for branch, parameters in self.update.branches.items():
            header[f"num_params_{branch}"] = sum(p.numel() for p in parameters)
        return header

    def _resume(self, checkpoint: Path) -> RunLog:
        training = self._take_up(checkpoint, self.identity)
        self.saved = self._position
        return RunLog(self.directory, training["log"])

    def _begin_as(self, shorter: Path) -> RunLog:
        """The beginning that a shorter training kept, with everything that this one would have left by then."""
        header = self._header()
        found = beginnings.find_beginning(shorter, self.config, header)
        training = self._take_up(found.state, {**self.identity, "config_sha256": found.config_sha256})
        if self.step != found.origin.step:
            raise beginnings.BeginningError(f"{found.state}: this is the state of step {self.step}; train it again")
        for step in self.config.train.checkpoint_steps:
            if step < self.step:
                kept = checkpoint_directory(shorter, step)
                verify(kept)
                shutil.copytree(kept, checkpoint_directory(self.directory, step), dirs_exist_ok=True)
        found.origin.write(self.directory)
        return RunLog.taking_over(self.directory, header, shorter, training["log"])

    def _take_up(self, checkpoint: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Bring model, optimizer, random state, monitors and loop into the state of a checkpoint."""
        training = load_training(self.model, self.update.optimizer, checkpoint, identity)
        self.step, self.next_batch = training["step"], training["next_batch"]
        self.evaluated_step, self.probed_step = training["evaluated_step"], training["probed_step"]
        self.started_s -= training["wall_s"]
        for monitor, state in zip(self.monitors, training["monitors"], strict=True):
            monitor.load_state_dict(state)
        return training

    def _train(self) -> Generator[int, None, None]:
        config = self.config
        self.model.train()
        while True:
            if self.keeps_beginning and self._is_before_decay():
                yield from self._queued()
                self._save_to(beginnings.state_path(self.directory, self.step))
                yield 0
            if self.step % config.eval.every_steps == 0 and self.evaluated_step != self.step:
                yield from self._queued()
                self._evaluate()
                yield 0
            if self.probe is not None and self.probed_step != self.step and self._probe_is_due():
                yield from self._queued()
                self._look_inside(self.probe)
                yield 0
            if self.step == config.train.steps:
                yield from self._queued()
                return
            if self.step in config.train.checkpoint_steps:
                yield from self._queued()
                save_weights(self.model, checkpoint_directory(self.directory, self.step))
            if self.step % config.train.save_every == 0 and self.step > 0:
                yield from self._queued()
                self._save()
                yield 0
            self._update()
            if len(self.pending) >= self.rows_at_once:
                yield from self._queued()
            self._pause()

    def _queued(self) -> Generator[int, None, None]:
        """The end of a turn of updates that the device may still be busy with, and at the next the reading of them."""
        if self.pending:
            yield len(self.pending)
            self._drain()

    def _pause(self) -> None:
        """Where Ctrl-C takes effect."""
        if self.interrupt.requested:
            self._drain()
            self.interrupt.check()

    def _update(self) -> None:
        """One update of the weights and the row that describes it."""
        config, step = self.config, self.step
        measured = self.update.branches if (step + 1) % config.monitors.update_every == 0 else {}
        before = {branch: [p.detach().clone() for p in parameters] for branch, parameters in measured.items()}
        batch = self.dataset.training_batch(self.seed, self.next_batch, self.batch_size, config.data.seq_len)
        values = self.update(*self.patch.batch(*batch, seed=self.seed, step=step), step)
        ratios = {f"update_ratio_{branch}": _update_ratio(measured[branch], old) for branch, old in before.items()}
        if ratios:
            values = torch.cat([values, torch.stack(list(ratios.values())).double()])

        self.step += 1
        self.next_batch += 1
        self.pending.append(
            _Pending(self.step, learning_rate(step, config.train), (*self.update.names, *ratios), values)
        )

    def _drain(self) -> None:
        """Log the rows that wait, in order. Raises ``_Ended`` at the first that is not finite."""
        pending, self.pending = self.pending, []
        table = torch.cat([row.values for row in pending]).tolist() if pending else []
        for row in pending:
            values, table = table[: len(row.names)], table[len(row.names) :]
            scalars = dict(zip(row.names, values, strict=True))
            clipped = scalars["grad_norm"] > self.config.train.clip_norm
            self._log({"kind": "step", "step": row.step, "lr": row.lr, **scalars, "clipped": clipped})
            for name in ("loss", "grad_norm"):
                if not math.isfinite(scalars[name]):
                    raise _Ended("diverged", row.step - 1, f"{name} is {scalars[name]} at step {row.step}")
            if self.progress is not None:
                self.progress.update(row.step, f"loss {scalars['loss']:.3f}{self.inside}")

    def _log(self, row: Mapping[str, Any]) -> None:
        """Write a row, show it to the monitors, and write what they say."""
        self.log.write(row)
        for event in [event for monitor in self.monitors for event in monitor.observe(row)]:
            self.log.write({**asdict(event), "kind": "event", "severity": event.kind})
            if event.kind == "STOP" and self.config.monitors.stop:
                raise _Ended("stopped", self.step, f"{event.criterion}: {event.evidence}")

    def _is_before_decay(self) -> bool:
        """Whether it is about to decay and nothing was done at this step: what is done may depend on the length."""
        seen = self.step in (0, self.evaluated_step, self.probed_step)
        return self.step == beginnings.decay_start(self.config.train) and not seen

    def _evaluate(self) -> None:
        row = self._evaluation("eval", self.config.eval.tokens)
        self.evaluated_step = self.step
        self._log(row)
        if not math.isfinite(row["val_loss"]):
            raise _Ended("diverged", self.step, f"validation loss is {row['val_loss']} after {self.step} updates")

    def _probe_is_due(self) -> bool:
        config = self.config
        return self.step % config.monitors.probe_every == 0 or self.step in (
            config.train.warmup_steps,
            config.train.steps,
        )

    def _look_inside(self, probe: Probe) -> None:
        with observing(self.model):
            row = {"kind": "probe", "step": self.step, **probe(self.model)}
        words = summary(row)
        self.probed_step, self.inside = self.step, f", {words}" if words else ""
        self._log(row)

    def _evaluation(self, kind: str, tokens: int) -> dict[str, Any]:
        length = self.config.data.seq_len
        windows = self.dataset.validation_windows(length, tokens // length)
        rows = max(self.batch_size, _EVAL_ROWS)
        result = evaluate(self.model, windows, rows, self.dtype, before_batch=self.interrupt.check)
        return {
            "kind": kind,
            "step": self.step,
            "val_loss": result.loss_nats,
            "val_se": result.loss_se,
            "tokens": result.tokens,
            "documents": result.documents.tolist(),
            "loss_sums": result.loss_sums.tolist(),
            "token_counts": result.token_counts.tolist(),
        }

    @property
    def _position(self) -> tuple[int, int, int]:
        """How far each part of the work has come."""
        return self.step, self.evaluated_step, self.probed_step

    def _save(self) -> None:
        """A resumable checkpoint of this moment, in place of the one before."""
        self._drain()
        if self.saved == self._position:
            return
        target = self.directory / RESUME / f"step-{self.step:06d}"
        self._save_to(target)
        self.saved = self._position
        for old in (self.directory / RESUME).iterdir():
            if old != target:
                shutil.rmtree(old)

    def _save_to(self, target: Path) -> None:
        self.log.sync()
        training = {
            "identity": self.identity,
            "step": self.step,
            "next_batch": self.next_batch,
            "evaluated_step": self.evaluated_step,
            "probed_step": self.probed_step,
            "log": self.log.position,
            "monitors": [monitor.state_dict() for monitor in self.monitors],
            "wall_s": time.monotonic() - self.started_s,
        }
        save_training(self.model, self.update.optimizer, training, target)

    def _finish(
        self, status: Literal["finished", "diverged", "stopped"], reason: str, step: int | None = None
    ) -> TrainOutcome:
        """The last evaluation and checkpoint (a diverged run has neither) and the outcome."""
        step = self.step if step is None else step
        if status != "diverged":
            self.log.write(self._evaluation("final_eval", self.config.eval.final_tokens))
            self._save_to(checkpoint_directory(self.directory, self.step))
        self.log.sync()
        if status != "finished":
            shutil.rmtree(self.directory / beginnings.DIRECTORY, ignore_errors=True)
        outcome = TrainOutcome(status, step, reason, time.monotonic() - self.started_s)
        write_synced(self.directory / f"{OUTCOME}.partial", canonical_json(asdict(outcome)).encode())
        (self.directory / f"{OUTCOME}.partial").replace(self.directory / OUTCOME)
        shutil.rmtree(self.directory / RESUME, ignore_errors=True)
        return outcome


def _update_ratio(parameters: Sequence[nn.Parameter], before: Sequence[Tensor]) -> Tensor:
    """||dW|| / ||W|| of one update over all tensors of a branch, W as it was before."""
    change = nn.utils.get_total_norm([p.detach() - old for p, old in zip(parameters, before, strict=True)])
    return change / nn.utils.get_total_norm(list(before))
