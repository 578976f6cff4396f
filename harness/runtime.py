"""The process a run happens in: threads, memory allocator, random state, interrupts. The only place that sets them."""

import ctypes
import functools
import hashlib
import platform
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

# mallopt parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_RETAINED_BYTES = 1 << 28
# the largest that older versions of glibc accept
_MMAP_THRESHOLD_MAX = 1 << 25


def configure_cpu(threads: int) -> None:
    """Fix the number of CPU threads, on which sums depend, and keep freed memory in the process."""
    torch.set_num_threads(threads)
    retain_memory()


@functools.cache
def configure_cuda() -> None:
    """Give every thread of this process that computes on the GPU its CUDA context.

    Autograd runs backward passes on a GPU in a thread of its own. Such a thread gets its context with the first kernel
    that it launches, and torch warns if it asks cuBLAS for a product before that: so here it launches one.
    """
    one = torch.ones(1, device="cuda", requires_grad=True)
    torch.autograd.backward((one * one).sum())


@functools.cache
def retain_memory() -> None:
    """Tell glibc not to give large blocks back to the system; elsewhere nothing happens.

    Each step frees and asks for the same logits and gradients. By default glibc maps such blocks afresh, and the
    page faults cost about a sixth of a 3.5M step.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(_M_MMAP_THRESHOLD, _RETAINED_BYTES):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX)
    libc.mallopt(_M_TRIM_THRESHOLD, _RETAINED_BYTES)
    libc.mallopt(_M_TOP_PAD, _RETAINED_BYTES)


@contextmanager
def seeded(seed: int, stream: str = "init") -> Iterator[None]:
    """Torch's random state as a function of ``seed`` inside, as it was before outside.

    ``stream`` separates what must not share draws: ``init`` builds a model, ``train`` serves dropout in training.
    """
    with torch.random.fork_rng(devices=_seeded_devices()):
        digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
        torch.manual_seed(seed if stream == "init" else int.from_bytes(digest[:8], "big") >> 1)
        yield


def _seeded_devices() -> list[int]:
    """The GPUs whose random state belongs to this process's."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def random_states() -> dict[str, Tensor]:
    """Torch's generators, by names that begin with ``random.``. Nothing draws from NumPy's or Python's global ones."""
    states = {"random.cpu": torch.get_rng_state()}
    if _seeded_devices():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Put back what ``random_states`` gave."""
    torch.set_rng_state(states["random.cpu"])
    if "random.cuda" in states:
        torch.cuda.set_rng_state(states["random.cuda"])


class OwnRandom:
    """The random state of one of several trainings that take turns in a process; at first that of ``seeded``."""

    def __init__(self, seed: int, stream: str) -> None:
        with seeded(seed, stream):
            self.states = random_states()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Torch's random state is this one inside, and what was drawn is remembered; outside it is as it was."""
        with torch.random.fork_rng(devices=_seeded_devices()):
            restore_random_states(self.states)
            try:
                yield
            finally:
                self.states = random_states()


class CleanInterrupt(KeyboardInterrupt):
    """Ctrl-C, raised at a point where nothing is half done."""


@dataclass
class Interrupt:
    """Whether the user has asked to stop."""

    requested: bool = False

    def check(self) -> None:
        """Raise ``CleanInterrupt`` if so. Call it only where the state can be saved."""
        if self.requested:
            raise CleanInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag, so that a step is never cut in half; the second one raises at once.

    Only the main thread receives signals: in another one the flag stays down.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def request(signum: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
