"""wkv6.cu on the CPU: its source compiled for the emulator, called as the operation is."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

EMULATOR = Path(__file__).parent / "cuda_emulator"
SOURCES = Path(__file__).parents[2] / "kernels" / "cuda"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CHUNK = 16


def compiled(source, directory, *flags, kernels=SOURCES):
    """The library of one emulated source, compiled once in a directory with the kernels of a folder.

    Raises CalledProcessError.
    """
    library = Path(directory) / f"{Path(source).stem}.so"
    if library.exists():
        return ctypes.CDLL(str(library))
    compiler = shutil.which("c++")
    command = [compiler, "-std=c++20", "-O1", "-g", "-shared", "-fPIC", "-DGROUNDTHINK_EMULATED", f"-I{EMULATOR}"]
    command += [f"-I{kernels}", "-Wno-unknown-pragmas", "-Wno-attributes", *flags, str(source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def filled(shape, dtype):
    """An output that nothing has been written to: NaN."""
    return torch.full(shape, float("nan"), dtype=dtype)


class EmulatedWkv6:
    """The operation with its gradients. ``multiprocessors`` decides into how many segments a row is cut."""

    def __init__(self, library, multiprocessors=1):
        self.library, self.multiprocessors = library, multiprocessors

    def __call__(self, r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, initial_state_BHKV):
        return _Emulated.apply(self, r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, initial_state_BHKV)

    def shape(self, r, log_w):
        return (*(int(size) for size in r.shape), DTYPES[r.dtype], DTYPES[log_w.dtype], self.multiprocessors)

    def sizes(self, r, log_w):
        out = (ctypes.c_ulonglong * 4)()
        self.library.sizes(*self.shape(r, log_w), out)
        return [int(size) for size in out]


class _Emulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, r, k, v, log_w, u, initial):
        checkpoints_bytes, scores_bytes, workspace_bytes, _ = op.sizes(r, log_w)
        # poisoned, so that what is read without having been written shows
        checkpoints = filled((checkpoints_bytes // 2,), torch.bfloat16)
        scores, workspace = filled((scores_bytes // 4,), torch.float32), filled((workspace_bytes // 4,), torch.float32)
        y, final = filled(v.shape, v.dtype), filled(initial.shape, torch.float32)
        tensors = (r, k, v, log_w, u, initial, y, final, checkpoints, scores, workspace)
        assert op.library.forward(*op.shape(r, log_w), *map(pointer, tensors)) == 0
        ctx.op = op
        ctx.save_for_backward(r, k, v, log_w, u, checkpoints, scores)
        return y, final

    @staticmethod
    def backward(ctx, dy, dfinal):
        r, k, v, log_w, u, checkpoints, scores = ctx.saved_tensors
        workspace = filled((ctx.op.sizes(r, log_w)[3] // 4,), torch.float32)
        grads = [filled(t.shape, t.dtype) for t in (r, k, v, log_w, u, dfinal)]
        tensors = (r, k, v, log_w, u, checkpoints, scores, dy.contiguous(), dfinal.contiguous(), *grads, workspace)
        assert ctx.op.library.backward(*ctx.op.shape(r, log_w), *map(pointer, tensors)) == 0
        return None, *grads


@cache
def _library(directory):
    return compiled(EMULATOR / "wkv6_emulated.cpp", directory)


def emulated_wkv6(directory, multiprocessors=1):
    return EmulatedWkv6(_library(str(directory)), multiprocessors)
