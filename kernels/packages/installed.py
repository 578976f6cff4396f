"""What of mamba-ssm and causal-conv1d is installed here, whether it is real, and whether it can run.

The compiled half of either package can be missing while the Python half is there, or be built for another PyTorch, or
be a stub: an empty module that somebody put in its place so that ``import mamba_ssm`` succeeds. A stub gives nothing,
and is reported as what it is.
"""

import importlib
import importlib.util
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Literal

HOW_TO_INSTALL = "docs/install.md says how to install it"


@dataclass(frozen=True)
class Installed:
    """One part of a package.

    part      the module that is imported
    version   of the package it comes from; None where that is not installed
    kind      real; stub (importable, but without the functions); broken (there, but its import fails); absent
    gives     what runs on it
    file      where it lies; None where there is no file
    note      why it is not real; empty where it is
    """

    part: str
    version: str | None
    kind: Literal["real", "stub", "broken", "absent"]
    gives: str
    file: str | None
    note: str

    def as_dict(self) -> dict[str, str | None]:
        """The fields by name, as records carry them."""
        return asdict(self)


FIELDS = tuple(field.name for field in fields(Installed))


@dataclass(frozen=True)
class _Part:
    """A module of a package; ``functions`` are those that a stub lacks, empty for a part that is not compiled."""

    module: str
    package: str
    gives: str
    functions: tuple[str, ...] = ()


_TRITON = _Part("triton", "triton", "compiles the kernels of mamba_ssm")
_MAMBA = _Part("mamba_ssm", "mamba-ssm", "ssd")
_SCAN = _Part("selective_scan_cuda", "mamba-ssm", "selective_scan", ("fwd", "bwd"))
_CONV = _Part("causal_conv1d_cuda", "causal-conv1d", "causal_conv1d", ("causal_conv1d_fwd", "causal_conv1d_bwd"))
_EINOPS = _Part("einops", "einops", "imported by mamba_ssm")


def inventory() -> list[Installed]:
    """Every part, installed or not. Imports the compiled ones, for only that tells whether they fit this PyTorch."""
    return [_look(part) for part in (_MAMBA, _SCAN, _CONV, _TRITON, _EINOPS)]


def ssd_available() -> tuple[bool, str]:
    """Whether mamba-ssm's SSD can run, and why. Imports none of it."""
    for part in (_MAMBA, _TRITON, _EINOPS):
        if not _is_there(part.module):
            return False, f"{part.package} is not installed: {HOW_TO_INSTALL}"
    return _on_a_gpu(f"mamba-ssm {_version(_MAMBA)}, Triton {_version(_TRITON)}")


def causal_conv1d_available() -> tuple[bool, str]:
    """Whether the compiled half of causal-conv1d can run, and why."""
    return _compiled_available(_CONV)


def selective_scan_available() -> tuple[bool, str]:
    """Whether the compiled half of mamba-ssm can run, and why."""
    return _compiled_available(_SCAN)


def _compiled_available(part: _Part) -> tuple[bool, str]:
    if not _is_there(part.module):
        return False, f"{part.module} of {part.package} is not installed: {HOW_TO_INSTALL}"
    on_a_gpu, why = _on_a_gpu(f"{part.package} {_version(part)}")
    if not on_a_gpu:
        return False, why
    found = _look(part)
    return (True, why) if found.kind == "real" else (False, found.note)


def _on_a_gpu(what: str) -> tuple[bool, str]:
    import torch

    return (True, what) if torch.cuda.is_available() else (False, f"{what} is installed, but PyTorch sees no CUDA GPU")


def _look(part: _Part) -> Installed:
    if not _is_there(part.module):
        return Installed(part.module, _version(part), "absent", part.gives, None, f"not installed: {HOW_TO_INSTALL}")
    if not part.functions:
        return Installed(part.module, _version(part), "real", part.gives, _file(part.module), "")
    try:
        importlib.import_module("torch")  # the compiled modules need the libraries that it loads
        module = importlib.import_module(part.module)
    except ImportError as error:
        note = f"built for another PyTorch or CUDA than is installed: {error}; build it again: {HOW_TO_INSTALL}"
        return Installed(part.module, _version(part), "broken", part.gives, _file(part.module), note)
    missing = [name for name in part.functions if not hasattr(module, name)]
    if missing:
        note = f"a stub stands in for {part.module}: it has no {' and no '.join(missing)}; {HOW_TO_INSTALL}"
        return Installed(part.module, _version(part), "stub", part.gives, getattr(module, "__file__", None), note)
    return Installed(part.module, _version(part), "real", part.gives, getattr(module, "__file__", None), "")


def _is_there(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _file(module: str) -> str | None:
    loaded: ModuleType | None = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin


def _version(part: _Part) -> str | None:
    try:
        return version(part.package)
    except PackageNotFoundError:
        return None
