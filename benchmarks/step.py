"""Training steps side by side in one run: GF-MH and other models of the same size, and on a GPU programs of others.

    python -m benchmarks.step [--scale 3.5M] [--rounds 30] [--threads 2] [--json FILE]
    python -m benchmarks.step --device cuda [--scale 8M] [--peers] [--cold] [--only REGEX] [--json FILE]

A step is forward, cross entropy, backward, clipping and fused AdamW: 512 tokens (2 x 256) in fp32 on a CPU, 16,384
(64 x 256) under bf16 autocast on a GPU. The models take turns, so a noisy neighbour hits all of them; the ratios are
medians of the ratios of each round. --cold times starts instead of steps: every candidate in a process of its own,
first with empty caches and then with those it has filled, to its first finished step.
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

import torch
from rich.console import Console
from torch import Tensor, nn

import kernels
from benchmarks import peers, record, timing
from benchmarks.record import Line, Record, Row
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

CPU_MODELS = ("GPT2", "GF-MH", "RWKV6", "MAMBA2")
CUDA_MODELS = (("GF-MH", "graphed"), ("GF-MH", "eager"), ("GPT2", "graphed"), ("GPT2", "eager"))
HYBRID = "GF-MH"

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

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A model in a mode. ``build`` gives a module that maps tokens and targets ``[B,T]`` to a loss."""

    name: str
    mode: str
    build: Callable[[], nn.Module]
    peer: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"


class WithLoss(nn.Module):
    """One of our models with our loss."""

    def __init__(self, name: str, scale: str) -> None:
        super().__init__()
        self.model = get_model(name, scale)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits_BTV = self.model(tokens_BT)
        return kernels.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class Step:
    """The training step of a module that gives a loss: eager, its module compiled, or the whole in a CUDA graph."""

    def __init__(self, module: nn.Module, mode: str, device: str) -> None:
        self.module = module.to(device).train()
        self.parameters = list(module.parameters())
        self.num_params = sum(parameter.numel() for parameter in self.parameters)
        self.graphed = mode == "graphed"
        self.loss = torch.compile(self.module) if mode == "compiled" else self.module
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True, capturable=self.graphed)
        # inside a graph a cached cast would be that of the weights at the capture
        self.autocast = partial(
            torch.autocast, device, torch.bfloat16, enabled=device == "cuda", cache_enabled=not self.graphed
        )
        self.replay: timing.Work | None = None

    def __call__(self, batch: Batch) -> None:
        """One step; on a GPU it may still run when this returns."""
        if not self.graphed:
            self._train(*batch)
            return
        if self.replay is None:
            self.inputs = tuple(tensor.clone() for tensor in batch)
            self.replay = timing.captured(lambda: self._train(*self.inputs))
        for static, given in zip(self.inputs, batch, strict=True):
            static.copy_(given, non_blocking=True)
        self.replay()

    def _train(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        # first, so that the gradients of a captured step are made, and written anew, inside the graph
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(tokens_BT, targets_BT)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()


def candidates(device: str, scale: str, *, with_peers: bool) -> Iterator[Candidate]:
    """Everything that can be timed on the device."""
    if device == "cpu":
        for name in CPU_MODELS:
            yield Candidate(name, "eager", partial(WithLoss, name, scale))
        return
    for name, mode in CUDA_MODELS:
        yield Candidate(name, mode, partial(WithLoss, name, scale))
    for peer in peers.MODELS if with_peers else ():
        lacking = peers.missing(peer.needs)
        if lacking:
            print(f"{peer.name} is left out: not installed: {', '.join(lacking)}")
            continue
        for mode in peer.modes:
            yield Candidate(peer.name, mode, partial(peer.build, model_config(HYBRID, scale), LENGTH), peer=True)


def make_batches(device: str) -> list[Batch]:
    """Token ids whose frequencies fall as those of words do: a gradient of an embedding depends on repetitions."""
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 / (torch.arange(NOMINAL_VOCAB_SIZE, dtype=torch.float64) + 2.7)
    shape = (BATCHES, ROWS[device], LENGTH + 1)
    drawn = torch.multinomial(frequencies, BATCHES * ROWS[device] * (LENGTH + 1), replacement=True, generator=generator)
    tokens = drawn.view(shape).to(device)
    return [(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in tokens]


def make_step(candidate: Candidate, device: str) -> Step:
    torch.manual_seed(0)
    return Step(candidate.build(), candidate.mode, device)


def measure(chosen: Sequence[Candidate], device: str, scale: str, rounds: int) -> list[Row]:
    """The rows of all candidates. A peer that does not run gets a row that says why; ours must run."""
    batches = make_batches(device)
    steps: dict[str, Step] = {}
    prepared: dict[str, float] = {}
    failed: list[Row] = []
    case = f"{scale} B{ROWS[device]} T{LENGTH} V{NOMINAL_VOCAB_SIZE} {'bf16' if device == 'cuda' else 'fp32'}"
    for candidate in chosen:
        begin = time.perf_counter()
        try:
            step = make_step(candidate, device)
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
    step = make_step(candidate, device)
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
        lines.append((row.candidate, row.mode, f"{row.details['num_params']:,}", *times, *seen, compared))
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
    for rows in starts(chosen, device, scale) if options.cold else [measure(chosen, device, scale, options.rounds)]:
        found = found.with_rows(rows)
        if options.json:
            record.write(found, options.json)
    return found


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
