"""Kernel times side by side in one run: forward, and forward with backward, of every backend on one device.

    python -m benchmarks.kernels [--threads 2] [--repeats 15] [--skip-reference] [--json FILE]
    python -m benchmarks.kernels --device cuda [--peers] [--only REGEX] [--json FILE]

The backends of an operation take turns, so that a disturbance of the machine meets all of them. On a CPU the least time
is shown. On a GPU it is the median, of calls one by one and of the same calls inside a CUDA graph, with the distance to
the memory floor; --peers adds programs of others that are installed. A peer may tune itself for minutes at its first
call: those seconds are told apart from its times.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

import kernels
from benchmarks import peers, record, timing
from benchmarks.peers import Inputs, Operation, Outputs
from benchmarks.record import Line, Record, Row
from benchmarks.workloads import (
    BOTH,
    FORWARD,
    PARTS,
    Workload,
    bytes_of,
    cpu_workloads,
    cuda_workloads,
    floor_bytes,
)
from kernels import backends
from kernels.jit_build import compiler_version
from kernels.parity import rms_error

REPEATS = {"cpu": 15, "cuda": 20}
# the sequential loops are slow and need no more than a few turns
REFERENCE_REPEATS = 3
# calls of a graph, each on inputs of its own: together they must not fit into the cache, and yet stay few
CALLS = (5, 64)


@dataclass(frozen=True)
class Candidate:
    """Who does the work. ``context`` is entered around each of its turns, outside of what is timed."""

    name: str
    load: Callable[[], Operation]
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    peer: bool = False
    details: dict[str, float | int | str] = field(default_factory=dict)


def own_candidates(workload: Workload, device: str, *, reference: bool) -> list[Candidate]:
    """Our backends that run on the device, or the one that is chosen there."""
    candidates = []
    chosen = backends.select(workload.op, device).name
    for name in backends.names(workload.op) if workload.fallbacks else (chosen,):
        if not backends.get(workload.op, name).runs_on(device)[0]:
            continue
        if name == backends.REFERENCE and not reference:
            continue
        load = partial(_load_own, workload.op)
        candidates.append(Candidate(f"{workload.op}/{name}", load, partial(backends.force, workload.op, name)))
    return candidates


def _load_own(op: str) -> Operation:
    function = getattr(kernels, op)

    def operation(inputs: Inputs) -> Outputs:
        results = function(**inputs)
        return results if isinstance(results, tuple) else (results,)

    return operation


def passes(workload: Workload, operation: Operation, sets: Sequence[Inputs]) -> dict[str, timing.Work]:
    """Each part as work on every set of inputs in turn: forward without autograd, and forward with backward.

    The backward pass goes from both outputs to all inputs. Results are returned, so that they live side by side.
    """

    def forward() -> object:
        with torch.no_grad():
            return [operation(inputs) for inputs in sets]

    # gradients are drawn once and shared: they are read, never written
    seeds: list[Tensor] = []

    def both() -> object:
        results = []
        for inputs in sets:
            outputs = operation(inputs)
            graded = outputs if workload.grades_the_state else outputs[:1]
            if not seeds:
                seeds.extend(torch.randn_like(output) for output in graded)
            leaves = [tensor for tensor in inputs.values() if tensor.requires_grad]
            results.append((outputs, torch.autograd.grad(graded, leaves, seeds)))
        return results

    return {FORWARD: forward, BOTH: both}


def differentiable(inputs: Inputs) -> Inputs:
    """The same tensors as leaves of a graph, where they have gradients."""
    return {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}


def number_of_sets(inputs: Inputs) -> int:
    """How many sets of inputs it takes, so that a set has left the GPU's cache when its turn comes again."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    fewest, most = CALLS
    return min(most, max(fewest, -(-2 * cache // sum(map(bytes_of, inputs.values())))))


@dataclass
class _Turn:
    """One candidate's part in one mode."""

    candidate: Candidate
    part: str
    mode: str
    work: timing.Work


def measure(
    workload: Workload, candidates: Sequence[Candidate], device: str, repeats: int, gb_s: float | None
) -> list[Row]:
    """The rows of one operation at one size. A peer that does not run gets a row that says why; ours must run."""
    inputs = differentiable(workload.make())
    sets = [inputs]
    if device == "cuda":
        sets += [differentiable(workload.make()) for _ in range(number_of_sets(inputs) - 1)]
    turns: list[_Turn] = []
    failed: list[Row] = []
    expected: Outputs | None = None
    for candidate in candidates:
        try:
            found, made = _prepare(workload, candidate, sets, device)
        except peers.failures() as error:
            if not candidate.peer:
                raise
            failed.append(_failed(workload, candidate, error))
            continue
        if expected is None:
            expected = made
        elif candidate.peer:
            candidate.details["difference"] = float(f"{rms_error(made[0], expected[0]):.2g}")
        turns += found
    if not turns or expected is None:
        return failed
    rows: list[Row] = []
    floors = floor_bytes(workload, inputs, expected)
    times = _take_turns(turns, len(sets), device, repeats)
    reference = _reference([turn.candidate for turn in turns])
    for turn in turns:
        key = (turn.candidate.name, turn.part, turn.mode)
        against = None if reference is None else times[reference.name, turn.part, turn.mode]
        rows.append(
            Row(
                benchmark=workload.op,
                case=workload.case,
                candidate=turn.candidate.name,
                part=turn.part,
                mode=turn.mode,
                peer=turn.candidate.peer,
                floor_ms=None if gb_s is None else floors[turn.part] / gb_s / 1e6,
                ratio=None if against is None else timing.times_as_fast(times[key], against),
                ratio_to=None if reference is None else reference.name,
                details=turn.candidate.details,
                **timing.summary(times[key]),
            )
        )
    return rows + failed


def _prepare(
    workload: Workload, candidate: Candidate, sets: Sequence[Inputs], device: str
) -> tuple[list[_Turn], Outputs]:
    """Everything of a candidate that happens once: build, tuning, capture; and its outputs, to be compared."""
    operation = candidate.load()
    work = passes(workload, operation, sets)
    with candidate.context():
        begin = time.perf_counter()
        for part in passes(workload, operation, sets[:1]).values():
            part()
        if device == "cuda":
            torch.cuda.synchronize()
        candidate.details["first_call_s"] = round(time.perf_counter() - begin, 2)
        with torch.no_grad():
            made = operation(sets[0])
        turns = [_Turn(candidate, part, "eager", work[part]) for part in PARTS]
        if device == "cuda":
            for part in PARTS:
                work[part]()
                turns.append(_Turn(candidate, part, "graphed", timing.captured(work[part])))
    return turns, made


def _take_turns(
    turns: Sequence[_Turn], calls: int, device: str, repeats: int
) -> dict[tuple[str, str, str], list[float]]:
    """Milliseconds of one call, by candidate, part and mode."""
    sample = timing.cuda_sample if device == "cuda" else timing.cpu_sample
    named = {(turn.candidate.name, turn.part, turn.mode): turn for turn in turns}
    at_most = {key: REFERENCE_REPEATS for key in named if key[0].endswith(f"/{backends.REFERENCE}")}

    def one(key: tuple[str, str, str]) -> float:
        with named[key].candidate.context():
            return sample(named[key].work) / calls

    return timing.take_turns({key: partial(one, key) for key in named}, repeats, at_most)


def _reference(candidates: Sequence[Candidate]) -> Candidate | None:
    """Whom the others are compared with: the first peer, else our reference."""
    for candidate in candidates:
        if candidate.peer:
            return candidate
    return next((one for one in candidates if one.name.endswith(f"/{backends.REFERENCE}")), None)


def _failed(workload: Workload, candidate: Candidate, error: Exception) -> Row:
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    return Row(
        benchmark=workload.op,
        case=workload.case,
        candidate=candidate.name,
        part=BOTH,
        mode="eager",
        peer=True,
        repeats=0,
        error=f"{type(error).__name__}: {said[:300]}",
    )


CUDA_HEADINGS = (
    "operation",
    "size",
    "candidate",
    "fwd",
    "fwd+bwd",
    "graph fwd",
    "graph fwd+bwd",
    "floor fwd",
    "floor fwd+bwd",
    "compared",
)
CPU_HEADINGS = ("operation", "size", "backend", "fwd ms", "fwd+bwd ms", "vs reference")


def cuda_lines(rows: Sequence[Row]) -> list[Line]:
    """A line a candidate: medians in ms one by one and in a graph, the floor, and how it compares."""
    lines: list[Line] = []
    for (op, case, candidate), found in _by_candidate(rows).items():
        graphed = found.get((BOTH, "graphed"))
        if graphed is None:
            [failed] = found.values()
            lines.append((op, case, candidate, *[""] * 6, f"did not run: {failed.error}"))
            continue
        cells = [f"{found[part, 'eager'].median_ms:.3f}" for part in PARTS]
        cells += [_beside_floor(found[part, "graphed"]) for part in PARTS]
        cells += [f"{found[part, 'graphed'].floor_ms:.3f}" for part in PARTS]
        itself = graphed.ratio_to in (None, candidate)
        lines.append((op, case, candidate, *cells, "" if itself else f"{graphed.ratio:.2f}x {graphed.ratio_to}"))
    return lines


def cpu_lines(rows: Sequence[Row]) -> list[Line]:
    """A line a backend: the least time of each part in ms, and how it compares with the sequential loops."""
    lines: list[Line] = []
    for (op, case, candidate), found in _by_candidate(rows).items():
        forward, both = (found[part, "eager"] for part in PARTS)
        gain = "" if both.ratio is None else f"{both.ratio:.1f}x"
        backend = candidate.partition("/")[2]
        lines.append((op, case, backend, f"{forward.least_ms:.2f}", f"{both.least_ms:.2f}", gain))
    return lines


def _by_candidate(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[tuple[str, str], Row]]:
    found: dict[tuple[str, str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        found.setdefault((row.benchmark, row.case, row.candidate), {})[row.part, row.mode] = row
    return found


def _beside_floor(row: Row) -> str:
    assert row.median_ms is not None
    assert row.floor_ms is not None
    return f"{row.median_ms:.3f} ({row.median_ms / row.floor_ms:.1f})"


def first_calls(rows: Sequence[Row]) -> list[str]:
    """What each peer's first call took, and how far its output is from ours."""
    return [
        f"{row.benchmark} {row.case}: {row.candidate} first call {row.details['first_call_s']} s, "
        f"y differs from ours by {row.details['difference']}"
        for row in rows
        if row.peer and row.error is None and (row.part, row.mode) == (BOTH, "eager")
    ]


def run(options: argparse.Namespace) -> Record:
    """Measure what the options ask for, keeping the file up to date, and give the record."""
    torch.manual_seed(0)
    cuda = options.device == "cuda"
    gb_s = timing.copy_gb_s() if cuda else None
    if not cuda:
        torch.set_num_threads(options.threads)
    found = record.begin("kernels", options.device, copy_gb_s=gb_s, **_built_with(options))
    absent: dict[str, list[str]] = {}
    for workload in cuda_workloads() if cuda else cpu_workloads():
        if not re.search(options.only, f"{workload.op} {workload.case}"):
            continue
        candidates = own_candidates(workload, options.device, reference=not cuda and not options.skip_reference)
        for peer in peers.OPERATIONS if options.peers else ():
            lacking = peers.missing(peer.needs)
            if peer.op == workload.op and not lacking:
                candidates.append(Candidate(peer.name, peer.load, peer=True))
            elif lacking:
                absent[peer.name] = lacking
        if not candidates:
            print(f"{workload.op} {workload.case}: nothing but the sequential loops runs here")
            continue
        began = time.perf_counter()
        found = found.with_rows(measure(workload, candidates, options.device, options.repeats, gb_s))
        if options.json:
            record.write(found, options.json)
        if cuda:
            timing.release()
            print(f"{workload.op} {workload.case}: {time.perf_counter() - began:.0f} s", flush=True)
    for name, modules in absent.items():
        print(f"{name} is left out: not installed: {', '.join(modules)}")
    return found


def _built_with(options: argparse.Namespace) -> dict[str, str]:
    if options.device == "cuda":
        return {}
    return {"threads": str(options.threads), "compiler": compiler_version() or "none"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--repeats", type=int, help="rounds (default 15 on a CPU, 20 on a GPU)")
    parser.add_argument(
        "--skip-reference", action="store_true", help="leave out the sequential loops (a GPU always does)"
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="only operations with sizes that match")
    options = record.parse(parser, arguments)
    options.repeats = options.repeats or REPEATS[options.device]
    found = run(options)
    if options.device == "cuda":
        title = f"{found.machine()}\nmedians in ms; (k): times the memory floor; compared: forward+backward in a graph"
        Console(width=170).print(record.table(CUDA_HEADINGS, cuda_lines(found.rows), title, grouped_by=2))
        print("\n".join(first_calls(found.rows)))
    else:
        threads, compiler = (found.provenance[name] for name in ("threads", "compiler"))
        title = f"{found.machine()}\n{threads} threads, compiler {compiler}, fp32, least times"
        Console(width=120).print(record.table(CPU_HEADINGS, cpu_lines(found.rows), title, grouped_by=2))


if __name__ == "__main__":
    main()
