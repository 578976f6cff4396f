"""How the benchmarks take time: turns in rounds, events on a GPU, CUDA graphs, and the bandwidth of a copy."""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch

Work = Callable[[], object]
K = TypeVar("K", bound=Hashable)

COPY_BYTES = 2**30
GRAPH_WARMUP = 3


def cpu_sample(work: Work) -> float:
    """Milliseconds of one call."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def cuda_sample(work: Work) -> float:
    """Milliseconds between the device's reaching the call and its finishing it: gaps between launches count."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def take_turns(
    turns: Mapping[K, Callable[[], float]], rounds: int, at_most: Mapping[K, int] | None = None
) -> dict[K, list[float]]:
    """Samples of each, in rounds: all take one turn a round, so that what disturbs the machine meets all of them.

    A turn returns its milliseconds. Who begins changes from round to round; ``at_most`` lets the slow ones stop after
    so many rounds.
    """
    samples: dict[K, list[float]] = {key: [] for key in turns}
    limits = {key: (at_most or {}).get(key, rounds) for key in turns}
    for index in range(rounds):
        order = list(turns)
        first = index % len(order)
        for key in order[first:] + order[:first]:
            if index < limits[key]:
                samples[key].append(turns[key]())
    return samples


def summary(samples: Sequence[float]) -> dict[str, float | int]:
    """``median_ms``, ``least_ms``, ``spread_ms`` (distance between the quartiles) and ``repeats`` of some samples."""
    if len(samples) > 1:
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    else:
        low = high = samples[0]
    return {
        "median_ms": statistics.median(samples),
        "least_ms": min(samples),
        "spread_ms": high - low,
        "repeats": len(samples),
    }


def times_as_fast(samples: Sequence[float], of_other: Sequence[float]) -> float:
    """How many times as fast as another: the median of the ratios of the rounds in which both took their turn."""
    # the one with fewer samples took part in the first rounds
    return statistics.median(other / own for own, other in zip(samples, of_other, strict=False))


def captured(work: Work) -> Work:
    """The work as one CUDA graph; calling it replays what the work launched. It must have run before.

    What the work returns stays alive, so that each of its results has memory of its own.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(GRAPH_WARMUP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def copy_gb_s(repeats: int = 20) -> float:
    """Gigabytes a second of a large copy on the GPU, read and written: what memory gives at best, here and now."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    times_ms = [cuda_sample(lambda: target.copy_(source)) for _ in range(repeats)]
    return 2 * COPY_BYTES / statistics.median(times_ms) / 1e6


def release() -> None:
    """Give the memory of what is no longer used back to the GPU, graphs included."""
    gc.collect()
    torch.cuda.empty_cache()


def device_kernels(work: Work) -> tuple[int, float]:
    """How many kernels, copies and fills the work runs on the GPU, and the milliseconds in which at least one ran."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    return len(spans), busy(spans) / 1e3


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of spans that are sorted by their begin."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
