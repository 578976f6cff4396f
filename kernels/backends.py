"""Which implementation of an operation runs: chosen once a process, by name, with the reason kept.

Order of choice on a device: the environment variable ``GROUNDTHINK_<OP>`` (such as ``GROUNDTHINK_WKV6=chunked``) if it
is set, else the first backend of the table that is available there. A backend that fails raises; nothing falls back.
"""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any


class BackendError(ValueError):
    """An operation or backend that does not exist, or does not run here. The message lists what does."""


@dataclass(frozen=True)
class Backend:
    """One implementation of one operation.

    devices    device types it runs on; empty means all
    load       imports, builds if needed, and returns the function
    available  (True, why it can run) or (False, what is missing and how to get it); must not build
    native     dtypes of values that reach it as they are, by name (``"bfloat16"``); others are cast to fp32 first.
               fp64 is never narrowed: a backend that cannot take it says so
    launches   regular expressions: each names a device kernel that one forward and backward pass must launch
    """

    op: str
    name: str
    devices: frozenset[str]
    load: Callable[[], Callable[..., Any]]
    available: Callable[[], tuple[bool, str]]
    native: frozenset[str] = frozenset()
    launches: tuple[str, ...] = ()

    def runs_on(self, device_type: str) -> tuple[bool, str]:
        """Whether it runs on a device type, and why."""
        if self.devices and device_type not in self.devices:
            return False, f"runs on {', '.join(sorted(self.devices))} only, not on {device_type}"
        return self.available()


@dataclass(frozen=True)
class Choice:
    """The backend chosen for an operation on a device type, and why."""

    op: str
    name: str
    reason: str


# Executed calls by (op, backend). What torch.compile has put into a graph is not counted.
calls: Counter[tuple[str, str]] = Counter()

REFERENCE = "reference"

_forced: dict[str, list[str]] = {}
_prepared: dict[tuple[str, str], tuple[Backend, Callable[..., Any]]] = {}
_wrappers: dict[str, list[Callable[[Callable[..., Any]], Callable[..., Any]]]] = {}


def _always() -> tuple[bool, str]:
    return True, "plain PyTorch"


def _compiler() -> tuple[bool, str]:
    from kernels.jit_build import compiler_version

    version = compiler_version()
    if version is None:
        return False, "no C++ compiler found: install g++ or set CXX"
    return True, f"built with {version}"


def _reference(op: str) -> Callable[[], Callable[..., Any]]:
    def load() -> Callable[..., Any]:
        from kernels import reference

        function: Callable[..., Any] = getattr(reference, f"{op}_reference")
        return function

    return load


def _cpp(op: str) -> Callable[[], Callable[..., Any]]:
    def load() -> Callable[..., Any]:
        from kernels.cpu import ops

        ops.load()
        function: Callable[..., Any] = getattr(ops, f"{op}_cpp")
        return function

    return load


def _gpu_build() -> tuple[bool, str]:
    from kernels.cuda.build import available

    return available()


def _cuda(op: str) -> Callable[[], Callable[..., Any]]:
    def load() -> Callable[..., Any]:
        from kernels.cuda import ops

        ops.load()
        function: Callable[..., Any] = getattr(ops, f"{op}_cuda")
        return function

    return load


def _load_wkv6_chunked() -> Callable[..., Any]:
    from kernels.wkv6_chunked import wkv6_chunked

    return wkv6_chunked


def _load_ssd_chunked() -> Callable[..., Any]:
    from kernels.ssd_chunked import ssd_chunked

    return ssd_chunked


def _torch(op: str) -> Callable[[], Callable[..., Any]]:
    def load() -> Callable[..., Any]:
        from kernels import torch_ops

        function: Callable[..., Any] = getattr(torch_ops, f"{op}_torch")
        return function

    return load


def _load_conv1d_shifted() -> Callable[..., Any]:
    from kernels.conv1d_shifted import causal_conv1d_shifted

    return causal_conv1d_shifted


def _load_ssd_mamba_ssm() -> Callable[..., Any]:
    from kernels.packages import mamba2, ssd

    mamba2.load()  # what stands for this operation and its neighbours together, and with it this one
    return ssd.ssd_mamba_ssm


def _load_conv1d_causal_conv1d() -> Callable[..., Any]:
    from kernels.packages import conv1d

    conv1d.load()
    return conv1d.causal_conv1d_causal_conv1d


def _load_selective_scan_mamba_ssm() -> Callable[..., Any]:
    from kernels.packages import selective_scan

    selective_scan.load()
    return selective_scan.selective_scan_mamba_ssm


def _package(op: str) -> Callable[[], tuple[bool, str]]:
    def available() -> tuple[bool, str]:
        from kernels.packages import installed

        answer: tuple[bool, str] = getattr(installed, f"{op}_available")()
        return answer

    return available


# Of every kernel of mamba-ssm that the two passes launch
_SSD_LAUNCHES = tuple(
    rf"\b{kernel}_kernel\b"
    for kernel in (
        "_chunk_cumsum_fwd",
        "_chunk_state_fwd",
        "_state_passing_fwd",
        "_bmm_chunk_fwd",
        "_chunk_scan_fwd",
        "_chunk_scan_bwd_dstates",
        "_state_passing_bwd",
        "_chunk_scan_chunk_state_bwd_dx",
        "_chunk_state_bwd_db",
        "_chunk_scan_bwd_dc",
        "_chunk_scan_bwd_dcb",
        "_bmm_chunk_bwd",
        "_chunk_scan_bwd_ddAcs_stable",
        "_chunk_cumsum_bwd",
    )
)
_CONV_LAUNCHES = (r"\bcausal_conv1d_channellast_fwd_kernel\b", r"\bcausal_conv1d_channellast_bwd_kernel\b")
_SCAN_LAUNCHES = (r"\bselective_scan_fwd_kernel\b", r"\bselective_scan_bwd_kernel\b")


def _launches(op: str) -> tuple[str, ...]:
    """Names of the device kernels of ours that a forward and a backward pass of ``op`` launch."""
    return rf"\b{op}_forward_kernel\b", rf"\b{op}_backward_kernel\b"


_CPU = frozenset({"cpu"})
_CUDA = frozenset({"cuda"})
_ANY: frozenset[str] = frozenset()
_NATIVE = frozenset({"float32", "bfloat16", "float16"})

# Best first.
_TABLE = (
    Backend("wkv6", "cpp", _CPU, _cpp("wkv6"), _compiler),
    Backend("wkv6", "cuda", _CUDA, _cuda("wkv6"), _gpu_build, _NATIVE, _launches("wkv6")),
    Backend("wkv6", "chunked", _ANY, _load_wkv6_chunked, _always),
    Backend("wkv6", "reference", _ANY, _reference("wkv6"), _always),
    Backend("ssd", "cpp", _CPU, _cpp("ssd"), _compiler),
    Backend("ssd", "mamba_ssm", _CUDA, _load_ssd_mamba_ssm, _package("ssd"), _NATIVE - {"float16"}, _SSD_LAUNCHES),
    Backend("ssd", "chunked", _ANY, _load_ssd_chunked, _always),
    Backend("ssd", "reference", _ANY, _reference("ssd"), _always),
    Backend("causal_conv1d", "cpp", _CPU, _cpp("causal_conv1d"), _compiler),
    Backend(
        "causal_conv1d",
        "causal_conv1d",
        _CUDA,
        _load_conv1d_causal_conv1d,
        _package("causal_conv1d"),
        _NATIVE,
        _CONV_LAUNCHES,
    ),
    Backend("causal_conv1d", "shifted", _ANY, _load_conv1d_shifted, _always),
    Backend("causal_conv1d", "reference", _ANY, _reference("causal_conv1d"), _always),
    Backend(
        "selective_scan",
        "mamba_ssm",
        _CUDA,
        _load_selective_scan_mamba_ssm,
        _package("selective_scan"),
        launches=_SCAN_LAUNCHES,
    ),
    Backend("selective_scan", "reference", _ANY, _reference("selective_scan"), _always),
    Backend("cross_entropy", "cpp", _CPU, _cpp("cross_entropy"), _compiler),
    Backend("cross_entropy", "cuda", _CUDA, _cuda("cross_entropy"), _gpu_build, _NATIVE, _launches("cross_entropy")),
    Backend("cross_entropy", "torch", _ANY, _torch("cross_entropy"), _always),
    Backend("cross_entropy", "reference", _ANY, _reference("cross_entropy"), _always),
    Backend("rms_norm", "cpp", _CPU, _cpp("rms_norm"), _compiler),
    Backend("rms_norm", "torch", _ANY, _torch("rms_norm"), _always),
    Backend("rms_norm", "reference", _ANY, _reference("rms_norm"), _always),
    Backend("gated_rms_norm", "cpp", _CPU, _cpp("gated_rms_norm"), _compiler),
    Backend("gated_rms_norm", "torch", _ANY, _torch("gated_rms_norm"), _always),
    Backend("gated_rms_norm", "reference", _ANY, _reference("gated_rms_norm"), _always),
)

OPS = tuple(dict.fromkeys(backend.op for backend in _TABLE))


def names(op: str, device_type: str | None = None) -> tuple[str, ...]:
    """The backends of an operation, best first: all, or those for a device type, available there or not.

    Raises ``BackendError`` for an unknown operation.
    """
    if op not in OPS:
        raise BackendError(_unknown("operation", op, OPS))
    of_op = [backend for backend in _TABLE if backend.op == op]
    return tuple(b.name for b in of_op if device_type is None or not b.devices or device_type in b.devices)


def get(op: str, name: str) -> Backend:
    """One backend by name. Raises ``BackendError`` for an unknown operation or backend."""
    if name not in names(op):
        raise BackendError(_unknown(f"backend of {op}", name, names(op)))
    return next(backend for backend in _TABLE if (backend.op, backend.name) == (op, name))


@cache
def select(op: str, device_type: str) -> Choice:
    """The backend of an operation on a device type (``cpu``, ``cuda``), decided on the first call of the process.

    Raises ``BackendError`` when ``GROUNDTHINK_<OP>`` names a backend that does not exist or does not run here.
    """
    variable = f"GROUNDTHINK_{op.upper()}"
    wanted = os.environ.get(variable) if op in OPS else None
    if wanted:
        ok, why = get(op, wanted).runs_on(device_type)
        if not ok:
            others = ", ".join(names(op, device_type))
            raise BackendError(f"{variable}={wanted}: {why}. Unset {variable} or choose among {others}")
        return Choice(op, wanted, f"{variable} is set; {why}")
    passed_over: list[str] = []
    for name in names(op):
        ok, why = get(op, name).runs_on(device_type)
        if ok:
            return Choice(op, name, "; ".join([why, *passed_over]))
        passed_over.append(f"not {name}: {why}")
    raise BackendError(f"{op} has no backend on {device_type}: {'; '.join(passed_over)}")


def resolve(op: str, device_type: str) -> Backend:
    """The backend of the next call: the forced one, or else the selected one."""
    name = forced(op) or select(op, device_type).name
    backend = get(op, name)
    if backend.devices and device_type not in backend.devices:
        raise BackendError(f"{op}: backend {name} {backend.runs_on(device_type)[1]}")
    return backend


def function_of(backend: Backend) -> Callable[..., Any]:
    """The function of a backend, to be called once: that call is counted in ``calls``."""
    function = _loaded(backend.op, backend.name)
    calls[backend.op, backend.name] += 1
    # the oracle is beyond the reach of what is planted in a kernel: it must stay able to show it
    for wrapper in _wrappers.get(backend.op, []) if backend.name != REFERENCE else []:
        function = wrapper(function)
    return function


def prepare(device_type: str) -> None:
    """Choose and load every operation's backend for ``traced``, building what must be built.

    It is what torch.compile needs before it traces: the choice looks at compilers and environment variables, which
    cannot be traced.
    """
    for op in OPS:
        backend = get(op, select(op, device_type).name)
        _prepared[op, device_type] = backend, _loaded(op, backend.name)


def traced(op: str, device_type: str) -> tuple[Backend, Callable[..., Any]]:
    """The selected backend and its function, for a graph that torch.compile makes and keeps.

    Raises ``BackendError`` before ``prepare``, and where the operation is forced or wrapped: the graph would go on
    with that when it is over.
    """
    if (op, device_type) not in _prepared:
        raise BackendError(f"{op}: call kernels.backends.prepare({device_type!r}) before torch.compile traces a call")
    if altered(op):
        raise BackendError(f"{op} is forced or wrapped now, which a compiled graph would keep: run without compilation")
    return _prepared[op, device_type]


def altered(op: str) -> bool:
    """Whether ``force`` or ``wrap`` holds for an operation now."""
    return bool(_forced.get(op)) or bool(_wrappers.get(op))


def forced(op: str) -> str | None:
    """The backend that ``force`` holds in place now, if any."""
    stack = _forced.get(op)
    return stack[-1] if stack else None


@contextmanager
def force(op: str, name: str) -> Iterator[None]:
    """Run every call of ``op`` on the backend ``name`` inside the block: for tests and negative controls.

    Raises ``BackendError`` for an unknown or unavailable backend.
    """
    backend = get(op, name)
    ok, why = backend.available()
    if not ok:
        raise BackendError(f"{op}: backend {name} is not available: {why}")
    stack = _forced.setdefault(op, [])
    stack.append(name)
    try:
        yield
    finally:
        stack.pop()


@contextmanager
def wrap(op: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put ``wrapper`` around whatever backend of ``op`` runs inside the block, except the reference.

    For negative controls and mutants: a kernel that raises, poisons its output or drops a gradient.
    """
    names(op)
    stack = _wrappers.setdefault(op, [])
    stack.append(wrapper)
    try:
        yield
    finally:
        stack.pop()


def describe(device_type: str) -> dict[str, dict[str, str]]:
    """What runs on a device type and why: ``{op: {"backend": name, "reason": text}}``."""
    described = {}
    for op in OPS:
        name = forced(op)
        choice = Choice(op, name, "forced") if name else select(op, device_type)
        described[op] = {"backend": choice.name, "reason": choice.reason}
    return described


@cache
def _loaded(op: str, name: str) -> Callable[..., Any]:
    return get(op, name).load()


def _unknown(what: str, given: str, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"unknown {what} {given!r}{hint} Allowed: {', '.join(allowed)}"
