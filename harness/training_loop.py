"""The training loop: one for every model, corpus, device and mutant.

Batches are windows at random places, a function of the seed and the step alone. Recurrent state is therefore not
carried from one batch to the next: each window starts from the model's initial state.
"""

import math
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness import beginnings
from harness.checkpoint import load_training, load_weights, save_training, save_weights, verify, write_synced
from harness.config import config_sha256
from harness.evaluation import evaluate
from harness.hashing import canonical_json
from harness.optim import learning_rate
from harness.probe_row import summary
from harness.runlog import RunLog
from harness.runtime import CleanInterrupt, Interrupt
from harness.step import TrainingStep, choose
from harness.trace import observing
from harness.training_files import OUTCOME, RESUME, checkpoint_directory, read_outcome
from harness.training_job import Probe, TrainError, TrainJob, TrainOutcome, resolve_dtype

CUDA_ROWS = 50
"""Reading a number off a GPU waits for it, so rows are collected there and read together. Where several trainings share
the GPU these updates are what it has to do while another looks inside its model: .17 s at 8M, 17 updates."""

# Rows of an evaluation batch, at least: a forward pass on two rows leaves a fifth of the processor idle.
_EVAL_ROWS = 8

Turns = Generator[int, None, "TrainOutcome"]
"""A training in turns: yields the updates of a turn whose numbers are still to be read (0 after an evaluation, a probe
or a checkpoint) and returns how it ended."""


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
        self.rows_at_once = CUDA_ROWS if device == "cuda" and not config.monitors.stop else 1
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
