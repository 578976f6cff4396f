"""Kernel times side by side in one run: forward, and forward with backward, of every backend on one device.

    python -m benchmarks.kernels [--threads 2] [--repeats 15] [--skip-reference]

The backends of an operation take turns, so that a disturbance of the machine meets all of them; the least time counts.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import kernels
from kernels import backends
from kernels.cpu.build import compiler_version


@dataclass(frozen=True)
class Workload:
    """One operation at one size. The title is what the table shows."""

    op: str
    title: str
    inputs: dict[str, Tensor]


def workloads() -> Iterator[Workload]:
    for B, T, H, K in [(4, 256, 4, 64), (2, 256, 2, 64), (4, 128, 4, 32)]:
        r, k, v, noise = (torch.randn(B, T, H, K) for _ in range(4))
        state = torch.randn(B, H, K, K)
        named = {"r_BTHK": r, "k_BTHK": k, "v_BTHV": v, "log_w_BTHK": -torch.exp(0.5 * noise - 2)}
        yield Workload("wkv6", f"B{B} T{T} H{H} K{K}", named | {"u_HK": torch.randn(H, K), "initial_state_BHKV": state})
    for B, T, H, P, N in [(4, 256, 8, 64, 64), (2, 256, 4, 64, 64), (4, 128, 4, 64, 64)]:
        named = {"x_BTHP": torch.randn(B, T, H, P), "dt_BTH": 0.1 * torch.rand(B, T, H), "A_H": -16 * torch.rand(H)}
        named |= {"B_BTGN": torch.randn(B, T, 1, N), "C_BTGN": torch.randn(B, T, 1, N)}
        yield Workload("ssd", f"B{B} T{T} H{H} P{P} N{N}", named | {"initial_state_BHPN": torch.randn(B, H, P, N)})
    for B, T, C in [(2, 256, 384), (4, 128, 384)]:
        named = {"x_BTC": torch.randn(B, T, C), "weight_Cw": torch.randn(C, 4), "bias_C": torch.randn(C)}
        yield Workload("causal_conv1d", f"B{B} T{T} C{C} w4", named | {"initial_state_BCw": torch.randn(B, C, 3)})
    for N, V in [(512, 16384)]:
        named = {"logits_NV": torch.randn(N, V), "targets_N": torch.randint(V, (N,))}
        yield Workload("cross_entropy", f"N{N} V{V}", named)
    for B, T, D in [(2, 256, 128), (2, 256, 256)]:
        named = {"x_BTD": torch.randn(B, T, D), "weight_D": torch.randn(D)}
        yield Workload("rms_norm", f"B{B} T{T} D{D}", named)
        yield Workload("gated_rms_norm", f"B{B} T{T} D{D}", named | {"z_BTD": torch.randn(B, T, D)})


def timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def passes(workload: Workload, backend: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward pass without autograd, and forward with backward from both outputs to all inputs."""
    operation = getattr(kernels, workload.op)
    given = {name: t.clone().requires_grad_(t.is_floating_point()) for name, t in workload.inputs.items()}
    leaves = [tensor for tensor in given.values() if tensor.requires_grad]

    def forward() -> None:
        with backends.force(workload.op, backend), torch.no_grad():
            operation(**given)

    def forward_backward() -> None:
        with backends.force(workload.op, backend):
            results = operation(**given)
        outputs = results if isinstance(results, tuple) else (results,)
        torch.autograd.grad(outputs, leaves, [torch.ones_like(output) for output in outputs])

    return forward, forward_backward


def measure(workload: Workload, names: list[str], repeats: int) -> dict[str, tuple[float, float]]:
    """Least time of the two passes of every backend, in ms."""
    work = {name: passes(workload, name) for name in names}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name, (forward, forward_backward) in work.items():
            # the sequential loops are slow and need no more than a few turns
            if name != "reference" or repeat < 3:
                times[name].append((timed(forward), timed(forward_backward)))
    return {name: (min(f for f, _ in pairs), min(fb for _, fb in pairs)) for name, pairs in times.items()}


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}, compiler {compiler_version() or 'none'}, fp32"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--skip-reference", action="store_true", help="leave out the sequential loops")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    table = Table("operation", "size", "backend", title=machine(), title_justify="left")
    for heading in ("fwd ms", "fwd+bwd ms", "vs reference"):
        table.add_column(heading, justify="right")
    for workload in workloads():
        names = [name for name in backends.names(workload.op) if backends.get(workload.op, name).available()[0]]
        if options.skip_reference:
            names.remove("reference")
        times = measure(workload, names, options.repeats)
        for name, (forward, forward_backward) in times.items():
            gain = f"{times['reference'][1] / forward_backward:.1f}x" if "reference" in times else ""
            table.add_row(workload.op, workload.title, name, f"{forward:.2f}", f"{forward_backward:.2f}", gain)
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
