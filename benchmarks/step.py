"""Training steps side by side in one run: GF-MH and other models of the same size, and on a GPU programs of others.

    python -m benchmarks.step [--scale 3.5M] [--rounds 30] [--threads 2] [--json FILE]
    python -m benchmarks.step --device cuda [--scale 8M] [--peers] [--cold] [--only REGEX] [--json FILE]

A step is forward, cross entropy, backward, clipping and fused AdamW: 512 tokens (2 x 256) in fp32 on a CPU, 16,384
(64 x 256) under bf16 autocast on a GPU. The models take turns, so a noisy neighbour hits all of them; the ratios are
medians of the ratios of each round. --cold times starts instead of steps: every candidate in a process of its own,
first with empty caches and then with those it has filled, to its first finished step. On a GPU the training loop itself
is timed, too: data, log and all.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import kernels
from benchmarks import peers, record, timing
from benchmarks.record import Line, Record, Row
from fixtures.presets import PRESETS, load_preset
from harness.data import Split, TokenDataset, Tokens
from harness.evaluation import to_device
from harness.step import Mode, TrainingStep, choose
from harness.train import train
from harness.training_job import resolve_dtype
from harness.training_loop import CUDA_ROWS
from models import NOMINAL_VOCAB_SIZE, get_model
from models.registry import model_config

SCALES = {"cpu": "3.5M", "cuda": "8M"}
ROWS = {"cpu": 2, "cuda": 64}
LENGTH = 256
ROUNDS = {"cpu": 30, "cuda": 20}
WARMUP = 3
# steps of one sample: a GPU works ahead of the program that feeds it, as it does in a training
STEPS = {"cpu": 1, "cuda": 4}
BATCHES = 8

HYBRID = "GF-MH"
CPU_MODELS = ("GPT2", HYBRID, "RWKV6", "MAMBA2")
# graphed is what trains, compiled its first steps, eager what analyses with hooks run
CUDA_MODELS: tuple[tuple[str, Mode], ...] = (
    (HYBRID, "graphed"),
    (HYBRID, "compiled"),
    (HYBRID, "eager"),
    ("GPT2", "graphed"),
    ("GPT2", "eager"),
)

# Where compiled code is kept, by whom: ours, Triton's, Inductor's, torch's extensions, the driver's
CACHES = (
    "GROUNDTHINK_KERNEL_CACHE",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "CUDA_CACHE_PATH",
    "XDG_CACHE_HOME",
)
# the steps of a start that are timed: the first, and one by which everything has settled
SETTLED = 20

# the training loop's own steps, and how many of them pass until it is in its stride
LOOP_STEPS, LOOP_WARMUP = 600, 100

Batch = tuple[Tokens, Tokens]


class Step(Protocol):
    """One training step of something with that many parameters; on a GPU it may still run when the call returns."""

    num_params: int

    def __call__(self, batch: Batch) -> None: ...


@dataclass(frozen=True)
class Candidate:
    """A model in a mode, and how its step is made."""

    name: str
    mode: Mode
    build: Callable[[], Step]
    peer: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"


class OwnStep:
    """The step that a training of ours takes."""

    def __init__(self, name: str, scale: str, mode: Mode, device: str) -> None:
        config = load_preset(scale)
        self.model = get_model(name, scale).to(device).train()
        self.num_params = sum(parameter.numel() for parameter in self.model.parameters())
        self.last = config.train.steps - 1
        self.step = TrainingStep(self.model, config.train, dtype=resolve_dtype(config, device), mode=mode)
        self.taken = 0

    def __call__(self, batch: Batch) -> None:
        self.step(*batch, min(self.taken, self.last))
        self.taken += 1


class PeerStep:
    """The same of a module that maps tokens and targets to a loss: eager, compiled, or the whole in a CUDA graph.

    What it does is what their users do: autocast, ``torch.compile`` of the module, fused AdamW.
    """

    def __init__(self, build: Callable[[], nn.Module], mode: Mode, device: str) -> None:
        self.device = torch.device(device)
        module = build().to(device).train()
        self.parameters = list(module.parameters())
        self.num_params = sum(parameter.numel() for parameter in self.parameters)
        self.graphed = mode == "graphed"
        self.loss = torch.compile(module) if mode == "compiled" else module
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True, capturable=self.graphed)
        self.replay: timing.Work | None = None

    def __call__(self, batch: Batch) -> None:
        given_2BT = to_device(np.stack(batch), self.device)
        if not self.graphed:
            self._train(given_2BT)
            return
        if self.replay is None:
            held_2BT = self.held_2BT = given_2BT.clone()
            self.replay = timing.captured(lambda: self._train(held_2BT))
        self.held_2BT.copy_(given_2BT)
        self.replay()

    def _train(self, batch_2BT: Tensor) -> None:
        # first, so that the gradients of a captured step are made, and written anew, inside the graph
        self.optimizer.zero_grad(set_to_none=True)
        # inside a graph a cached cast would be that of the weights at the capture
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=not self.graphed):
            loss = self.loss(*batch_2BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()


def candidates(device: str, scale: str, *, with_peers: bool) -> Iterator[Candidate]:
    """Everything that can be timed on the device."""
    ours = CUDA_MODELS if device == "cuda" else tuple((name, "eager") for name in CPU_MODELS)
    for name, mode in ours:
        yield Candidate(name, mode, partial(OwnStep, name, scale, mode, device))
    for peer in peers.MODELS if with_peers else ():
        lacking = peers.missing(peer.needs)
        if lacking:
            print(f"{peer.name} is left out: not installed: {', '.join(lacking)}")
            continue
        build = partial(peer.build, model_config(HYBRID, scale), LENGTH)
        for mode in peer.modes:
            yield Candidate(peer.name, mode, partial(PeerStep, build, mode, device), peer=True)


def make_tokens(count: int) -> Tokens:
    """Token ids whose frequencies fall as those of words do: a gradient of an embedding depends on repetitions."""
    frequencies = 1 / (np.arange(NOMINAL_VOCAB_SIZE) + 2.7)
    generator = np.random.Generator(np.random.Philox(key=0))
    return generator.choice(NOMINAL_VOCAB_SIZE, count, p=frequencies / frequencies.sum()).astype(np.uint16)


def make_batches(device: str) -> list[Batch]:
    """A few batches ``[B,T]`` of inputs and targets."""
    tokens = make_tokens(BATCHES * ROWS[device] * (LENGTH + 1)).reshape(BATCHES, ROWS[device], LENGTH + 1)
    return [(one[:, :-1], one[:, 1:]) for one in tokens]


def make_step(candidate: Candidate) -> Step:
    torch.manual_seed(0)
    return candidate.build()


def measure(chosen: Sequence[Candidate], device: str, scale: str, rounds: int) -> list[Row]:
    """The rows of all candidates. A peer that does not run gets a row that says why; ours must run."""
    batches = make_batches(device)
    steps: dict[str, Step] = {}
    prepared: dict[str, float] = {}
    failed: list[Row] = []
    case = _case(scale, device)
    for candidate in chosen:
        begin = time.perf_counter()
        try:
            step = make_step(candidate)
            for index in range(WARMUP):
                step(batches[index % BATCHES])
            if device == "cuda":
                torch.cuda.synchronize()
        except peers.failures() as error:
            if not candidate.peer:
                raise
            failed.append(_failed(candidate, case, error))
            continue
        steps[str(candidate)] = step
        prepared[str(candidate)] = time.perf_counter() - begin
        print(f"{candidate}: ready after {prepared[str(candidate)]:.0f} s", flush=True)

    sample = timing.cuda_sample if device == "cuda" else timing.cpu_sample

    def several(step: Step, count: int) -> None:
        for index in range(count):
            step(batches[index % BATCHES])

    def turn(step: Step) -> float:
        return sample(partial(several, step, STEPS[device])) / STEPS[device]

    times = timing.take_turns({name: partial(turn, step) for name, step in steps.items()}, rounds)
    reference = _reference([one for one in chosen if str(one) in steps])
    tokens = ROWS[device] * LENGTH
    rows = []
    for candidate in chosen:
        name = str(candidate)
        if name not in steps:
            continue
        summary = timing.summary(times[name])
        details: dict[str, float | int | str] = {
            "num_params": steps[name].num_params,
            "ready_s": round(prepared[name], 2),
        }
        if device == "cuda":
            count, busy_ms = timing.device_kernels(partial(several, steps[name], STEPS[device]))
            details |= {
                "kernels_per_step": round(count / STEPS[device]),
                "gpu_busy_ms": round(busy_ms / STEPS[device], 3),
                "gpu_busy_share": round(busy_ms / STEPS[device] / summary["median_ms"], 3),
            }
        rows.append(
            Row(
                benchmark="step",
                case=case,
                candidate=candidate.name,
                part="step",
                mode=candidate.mode,
                peer=candidate.peer,
                tokens_per_s=tokens / summary["median_ms"] * 1e3,
                ratio=None if reference is None else timing.times_as_fast(times[name], times[str(reference)]),
                ratio_to=None if reference is None else str(reference),
                details=details,
                **summary,
            )
        )
    return rows + failed


class _Arrivals:
    """A progress that notes when the rows of so many more steps are there: a GPU's are read together."""

    def __init__(self) -> None:
        self.times_s: dict[int, float] = {}

    def begin(self, total: int, done: int) -> None:
        """Nothing: the first steps also pay for what is made once."""

    def update(self, step: int, note: str) -> None:
        self.times_s[step] = time.perf_counter()

    def end(self) -> None:
        """Nothing."""


def measure_loop(scale: str, device: str) -> Row:
    """The row of ``harness.train`` training the hybrid: without evaluations and probes, which have their own pace."""
    keys = {
        "train.steps": LOOP_STEPS, "train.warmup_steps": 0, "train.decay_fraction": 0, "train.checkpoint_steps": [],
        "train.save_every": 10 * LOOP_STEPS, "eval.every_steps": 10 * LOOP_STEPS, "eval.tokens": LENGTH,
        "eval.final_tokens": LENGTH,
    }  # fmt: skip
    config = load_preset(scale, [f"{key}={value}" for key, value in keys.items()])
    arrivals = _Arrivals()
    torch.manual_seed(0)
    model = get_model(HYBRID, scale).to(device)
    mode = choose(model, config.train, device).mode
    with tempfile.TemporaryDirectory(prefix="benchmark-loop-") as directory:
        train(model, _made_up_corpus(), config, Path(directory), seed=0, device=device, progress=arrivals)
    rows = CUDA_ROWS if device == "cuda" else 1
    marks = [arrivals.times_s[step] for step in range(LOOP_WARMUP, LOOP_STEPS + 1, rows)]
    summary = timing.summary([1e3 * (now - before) / rows for before, now in pairwise(marks)])
    tokens: int = getattr(config.train.batch_tokens, device)
    return Row(
        benchmark="step",
        case=_case(scale, device),
        candidate=HYBRID,
        part="loop",
        mode=mode,
        tokens_per_s=tokens / summary["median_ms"] * 1e3,
        details={"num_params": sum(parameter.numel() for parameter in model.parameters())},
        **summary,
    )


def _made_up_corpus() -> TokenDataset:
    def split(count: int) -> Split:
        return Split(make_tokens(count), np.array([0, count]), ("made up",), 0)

    hashes = {"corpus_sha256": "0" * 64, "tokenizer_sha256": "0" * 64}
    return TokenDataset("made up", split(2**21), split(2**14), NOMINAL_VOCAB_SIZE, embedded=False, **hashes)


def _case(scale: str, device: str) -> str:
    return f"{scale} B{ROWS[device]} T{LENGTH} V{NOMINAL_VOCAB_SIZE} {'bf16' if device == 'cuda' else 'fp32'}"


def _reference(ran: Sequence[Candidate]) -> Candidate | None:
    """Whom the others are compared with: the best a peer's hybrid does, else the eager GPT-2 of ours."""
    wanted = (peers.MODELS[0].name, "graphed"), ("GPT2", "eager")
    return next((one for name, mode in wanted for one in ran if (one.name, one.mode) == (name, mode)), None)


def _failed(candidate: Candidate, case: str, error: Exception) -> Row:
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    return Row(
        benchmark="step",
        case=case,
        candidate=candidate.name,
        part="step",
        mode=candidate.mode,
        peer=True,
        repeats=0,
        error=f"{type(error).__name__}: {said[:300]}",
    )


def starts(chosen: Sequence[Candidate], device: str, scale: str) -> Iterator[list[Row]]:
    """A row a start: of each candidate with empty caches, and with those that its first start has filled."""
    for candidate in chosen:
        with tempfile.TemporaryDirectory(prefix="benchmark-start-") as directory:
            for held in ("empty", "filled"):
                row = Row(
                    benchmark="start",
                    case=f"{scale}, caches {held}",
                    candidate=candidate.name,
                    part="first step",
                    mode=candidate.mode,
                    peer=candidate.peer,
                    repeats=1,
                )
                environment = os.environ | {name: f"{directory}/{name.lower()}" for name in CACHES}
                yield [_started(row, candidate, device, scale, environment)]


def _started(row: Row, candidate: Candidate, device: str, scale: str, environment: dict[str, str]) -> Row:
    command = [sys.executable, "-m", "benchmarks.step", "--device", device, "--scale", scale]
    command += ["--start", str(candidate), "--began", repr(time.time())]
    if candidate.peer:
        command.append("--peers")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=not candidate.peer)
    if done.returncode != 0:
        return row.model_copy(update={"error": f"the process ended with exit code {done.returncode}"})
    phases = json.loads(done.stdout.splitlines()[-1])
    first_ms = 1e3 * phases["first_step_s"]
    return row.model_copy(update={"median_ms": first_ms, "least_ms": first_ms, "spread_ms": 0.0, "details": phases})


def start(candidate: Candidate, device: str, began: float) -> dict[str, float]:
    """Seconds since ``began`` (of the clock of the world): at the end of imports, of building, of two steps."""
    phases = {"imported_s": time.time() - began}
    step = make_step(candidate)
    phases["built_s"] = time.time() - began
    batches = make_batches(device)
    for index in range(SETTLED):
        step(batches[index % BATCHES])
        if index in (0, SETTLED - 1):
            if device == "cuda":
                torch.cuda.synchronize()
            phases["first_step_s" if index == 0 else f"step_{SETTLED}_s"] = time.time() - began
    return {name: round(seconds, 2) for name, seconds in phases.items()}


STEP_HEADINGS = (
    "candidate",
    "mode",
    "parameters",
    "ms a step",
    "spread",
    "tokens/s",
    "kernels",
    "GPU busy ms",
    "share",
    "as fast as",
)
START_HEADINGS = ("candidate", "mode", "start", "imported", "model built", "first step", f"step {SETTLED}")


def step_lines(rows: Sequence[Row]) -> list[Line]:
    """A line a candidate: time, throughput, what ran on the GPU, and how it compares."""
    lines: list[Line] = []
    for row in rows:
        if row.benchmark != "step":
            continue
        if row.median_ms is None:
            lines.append((row.candidate, row.mode, *[""] * 7, f"did not run: {row.error}"))
            continue
        seen = [str(row.details.get(name, "")) for name in ("kernels_per_step", "gpu_busy_ms", "gpu_busy_share")]
        times = (f"{row.median_ms:.2f}", f"{row.spread_ms:.2f}", f"{row.tokens_per_s:,.0f}")
        compared = "" if row.ratio is None else f"{row.ratio:.2f}x {row.ratio_to}"
        name = row.candidate if row.part == "step" else f"{row.candidate}, the training loop"
        lines.append((name, row.mode, f"{row.details['num_params']:,}", *times, *seen, compared))
    return lines


def start_lines(rows: Sequence[Row]) -> list[Line]:
    """A line a start: seconds since the process began."""
    lines: list[Line] = []
    for row in rows:
        if row.benchmark != "start":
            continue
        phases = ("imported_s", "built_s", "first_step_s", f"step_{SETTLED}_s")
        seen = [f"{row.details[phase]:.1f}" for phase in phases] if row.error is None else ["", "", row.error, ""]
        lines.append((row.candidate, row.mode, row.case, *seen))
    return lines


def run(options: argparse.Namespace) -> Record:
    """Measure what the options ask for, keeping the file up to date, and give the record."""
    device, scale = options.device, options.scale
    everyone = candidates(device, scale, with_peers=options.peers)
    chosen = [candidate for candidate in everyone if re.search(options.only, str(candidate))]
    cpu = {"threads": str(options.threads)} if device == "cpu" else {}
    chosen_backends = {op: choice["backend"] for op, choice in kernels.backends.describe(device).items()}
    found = record.begin("step", device, backends=json.dumps(chosen_backends), **cpu)
    for rows in starts(chosen, device, scale) if options.cold else _steps(chosen, options):
        found = found.with_rows(rows)
        if options.json:
            record.write(found, options.json)
    return found


def _steps(chosen: Sequence[Candidate], options: argparse.Namespace) -> Iterator[list[Row]]:
    yield measure(chosen, options.device, options.scale, options.rounds)
    if options.device == "cuda" and re.search(options.only, f"{HYBRID}, loop"):
        timing.release()
        yield [measure_loop(options.scale, options.device)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_arguments(parser)
    parser.add_argument("--scale", help="size of the models (default 3.5M on a CPU, 8M on a GPU)")
    parser.add_argument("--rounds", type=int, help="turns of each model (default 30 on a CPU, 20 on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--cold", action="store_true", help="time starts instead of steps")
    parser.add_argument("--only", default="", metavar="REGEX", help='only candidates that match, as "GF-MH, graphed"')
    # what --cold runs in a process of its own
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = record.parse(parser, arguments)
    options.scale = options.scale or SCALES[options.device]
    options.rounds = options.rounds or ROUNDS[options.device]
    if options.scale not in PRESETS:
        parser.error(f"--scale {options.scale}: there is no such size; allowed: {', '.join(PRESETS)}")
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    if options.start:
        everyone = candidates(options.device, options.scale, with_peers=options.peers)
        candidate = next(one for one in everyone if str(one) == options.start)
        print(json.dumps(start(candidate, options.device, options.began)))
        return
    found = run(options)
    threads = f", {options.threads} threads" if options.device == "cpu" else ""
    title = f"{found.machine()}{threads}\n{found.rows[0].case if found.rows else ''}, {found.provenance['backends']}"
    console = Console(width=160)
    if options.cold:
        title = f"{title}\nseconds since the process began"
        console.print(record.table(START_HEADINGS, start_lines(found.rows), title, grouped_by=2))
    else:
        console.print(record.table(STEP_HEADINGS, step_lines(found.rows), title))


if __name__ == "__main__":
    main()
