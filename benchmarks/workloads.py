"""What the kernel benchmarks time: operations at sizes of trainings, their inputs, the bytes that each must move."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers import Inputs, Outputs

FORWARD, BOTH = "forward", "forward+backward"
PARTS = (FORWARD, BOTH)


@dataclass(frozen=True)
class Workload:
    """One operation at one size.

    case               what the tables show
    make               inputs by name, drawn anew at every call
    fallbacks          whether all backends of ours that run there are timed, or only the one that is chosen
    grades_the_state   whether the backward pass starts from the final state, too
    """

    op: str
    case: str
    make: Callable[[], Inputs]
    fallbacks: bool = True
    grades_the_state: bool = True


def cpu_workloads() -> Iterator[Workload]:
    for B, T, H, K in [(4, 256, 4, 64), (2, 256, 2, 64), (4, 128, 4, 32)]:
        yield Workload("wkv6", f"B{B} T{T} H{H} K{K}", partial(wkv6_inputs, B, T, H, K))
    for B, T, H, P, N in [(4, 256, 8, 64, 64), (2, 256, 4, 64, 64), (4, 128, 4, 64, 64)]:
        yield Workload("ssd", f"B{B} T{T} H{H} P{P} N{N}", partial(ssd_inputs, B, T, H, P, N))
    for B, T, C in [(2, 256, 384), (4, 128, 384)]:
        yield Workload("causal_conv1d", f"B{B} T{T} C{C} w4", partial(conv1d_inputs, B, T, C))
    yield Workload("cross_entropy", "N512 V16384", partial(cross_entropy_inputs, 512, 16384))
    for B, T, D in [(2, 256, 128), (2, 256, 256)]:
        yield Workload("rms_norm", f"B{B} T{T} D{D}", partial(rms_norm_inputs, B, T, D))
        yield Workload("gated_rms_norm", f"B{B} T{T} D{D}", partial(gated_rms_norm_inputs, B, T, D))


def cuda_workloads() -> Iterator[Workload]:
    """Sizes of training steps, of long contexts and of few sequences; values in bf16 unless the case says otherwise.

    ``w fp32`` is what a training step calls: under autocast the decay stays in fp32. The plain PyTorch backends are
    timed at the first size only, where they are to be seen beside the kernels; at the long ones they need minutes.
    """
    bf16 = torch.bfloat16
    for index, (B, T, H, K) in enumerate(
        [(64, 256, 3, 64), (64, 256, 6, 32), (32, 1024, 12, 64), (8, 4096, 32, 64), (2, 4096, 4, 64), (1, 1024, 2, 64)]
    ):
        for decay, named in ((bf16, "bf16"), (torch.float32, "w fp32")):
            make = partial(wkv6_inputs, B, T, H, K, dtype=bf16, decay=decay, device="cuda")
            yield Workload("wkv6", f"B{B} T{T} H{H} K{K} {named}", make, fallbacks=index == 0)
    for index, (B, T, H, P, N) in enumerate([(64, 256, 6, 64, 64), (8, 4096, 32, 64, 128)]):
        make = partial(ssd_inputs, B, T, H, P, N, dtype=bf16, device="cuda")
        yield Workload("ssd", f"B{B} T{T} H{H} P{P} N{N} bf16", make, fallbacks=index == 0)
    yield Workload("causal_conv1d", "B64 T256 C512 w4 bf16", partial(conv1d_inputs, 64, 256, 512, bf16, "cuda"))
    # its kernel neither begins from a state nor takes a gradient from one
    make = partial(selective_scan_inputs, 64, 256, 384, 16, bf16, "cuda")
    yield Workload("selective_scan", "B64 T256 C384 N16 bf16", make, grades_the_state=False)
    make = partial(cross_entropy_inputs, 16384, 16384, bf16, "cuda")
    yield Workload("cross_entropy", "N16384 V16384 bf16", make)
    # under autocast the residual stream is fp32, what a gate multiplies is bf16
    make = partial(rms_norm_inputs, 64, 256, 192, torch.float32, "cuda")
    yield Workload("rms_norm", "B64 T256 D192 fp32", make)
    make = partial(gated_rms_norm_inputs, 64, 256, 384, bf16, "cuda")
    yield Workload("gated_rms_norm", "B64 T256 D384 bf16", make)


def wkv6_inputs(
    B: int,
    T: int,
    H: int,
    K: int,
    dtype: torch.dtype = torch.float32,
    decay: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Inputs:
    r, k, v, noise = (torch.randn(B, T, H, K, device=device) for _ in range(4))
    log_w = -torch.exp(0.5 * noise - 2)
    return {
        "r_BTHK": r.to(dtype),
        "k_BTHK": k.to(dtype),
        "v_BTHV": v.to(dtype),
        "log_w_BTHK": log_w.to(decay),
        "u_HK": torch.randn(H, K, device=device),
        "initial_state_BHKV": torch.randn(B, H, K, K, device=device),
    }


def ssd_inputs(
    B: int, T: int, H: int, P: int, N: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Inputs:
    return {
        "x_BTHP": torch.randn(B, T, H, P, device=device).to(dtype),
        "dt_BTH": 0.1 * torch.rand(B, T, H, device=device),
        "A_H": -16 * torch.rand(H, device=device),
        "B_BTGN": torch.randn(B, T, 1, N, device=device).to(dtype),
        "C_BTGN": torch.randn(B, T, 1, N, device=device).to(dtype),
        "initial_state_BHPN": torch.randn(B, H, P, N, device=device),
    }


def conv1d_inputs(B: int, T: int, C: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    return {
        "x_BTC": torch.randn(B, T, C, device=device).to(dtype),
        "weight_Cw": torch.randn(C, 4, device=device),
        "bias_C": torch.randn(C, device=device),
        "initial_state_BCw": torch.randn(B, C, 3, device=device),
    }


def selective_scan_inputs(B: int, T: int, C: int, N: int, dtype: torch.dtype, device: str) -> Inputs:
    return {
        "u_BTC": torch.randn(B, T, C, device=device).to(dtype),
        "delta_BTC": 0.1 * torch.rand(B, T, C, device=device),
        "A_CN": -16 * torch.rand(C, N, device=device),
        "B_BTN": torch.randn(B, T, N, device=device).to(dtype),
        "C_BTN": torch.randn(B, T, N, device=device).to(dtype),
        "D_C": torch.randn(C, device=device),
    }


def cross_entropy_inputs(N: int, V: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    logits = torch.randn(N, V, device=device).to(dtype)
    return {"logits_NV": logits, "targets_N": torch.randint(V, (N,), device=device)}


def rms_norm_inputs(B: int, T: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    return {"x_BTD": torch.randn(B, T, D, device=device).to(dtype), "weight_D": torch.randn(D, device=device)}


def gated_rms_norm_inputs(B: int, T: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    return rms_norm_inputs(B, T, D, dtype, device) | {"z_BTD": torch.randn(B, T, D, device=device).to(dtype)}


def floor_bytes(workload: Workload, inputs: Inputs, outputs: Outputs) -> dict[str, int]:
    """Bytes that each part must move at least: every input is read once a pass, every result written once.

    The backward pass reads the inputs again and the gradients of the outputs, and writes the gradients of the inputs.
    That of a cross entropy need not: its gradient is known, up to a factor, when the logits are read first.
    """
    read = sum(map(bytes_of, inputs.values()))
    written = sum(map(bytes_of, outputs))
    gradients = sum(bytes_of(tensor) for tensor in inputs.values() if tensor.is_floating_point())
    graded = sum(map(bytes_of, outputs if workload.grades_the_state else outputs[:1]))
    forward = read + written
    again = 0 if workload.op == "cross_entropy" else read + graded
    return {FORWARD: forward, BOTH: forward + again + gradients}


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
