"""Builds the C++ operations once and caches the library.

One directory a key, and the key covers everything that changes the machine code: our sources, the torch version, the
compiler, the flags and the CPU (we compile for the very CPU at hand). A lock of the operating system guards the build,
so a killed build leaves nothing that could block the next one; a finished library appears by one atomic rename.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCES = ("wkv6.cpp", "ssd.cpp", "conv1d.cpp")
HEADERS = ("linear_scan.h", "tensors.h")
# No -ffast-math: NaN and inf must come through, and a sum must have the same order in every build.
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    # Apple's compiler has no OpenMP: there the kernels run on one thread
    "-fopenmp-simd" if sys.platform == "darwin" else "-fopenmp",
)


class KernelBuildError(RuntimeError):
    """The compiler is there but does not build the kernels. The message ends with what it said."""


@cache
def compiler_version() -> str | None:
    """First line of the compiler's ``--version``, or None where there is no C++ compiler (``CXX``, else ``c++``)."""
    command = _compiler()
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    lines = result.stdout.splitlines()
    return lines[0] if result.returncode == 0 and lines else None


def build() -> Path:
    """Path of the built library; compiles on the first call on this machine.

    Raises ``KernelBuildError`` when the compiler fails.
    """
    from filelock import FileLock

    directory = _cache_root() / _key()
    library = directory / "kernels.so"
    if library.exists():
        return library
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / "lock"):
        if not library.exists():
            _compile(directory, library)
    return library


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++")) or ["c++"]


def _cache_root() -> Path:
    named = os.environ.get("GROUNDTHINK_KERNEL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundthink" / "kernels"


def _key() -> str:
    import torch

    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((Path(__file__).parent / name).read_bytes())
    for part in (torch.__version__, str(compiler_version()), *_compiler(), *FLAGS, _cpu_model()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _cpu_model() -> str:
    """What ``-march=native`` depends on: the model of the CPU and its instruction sets."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)}))


def _compile(directory: Path, library: Path) -> None:
    """Compile every source at once, then link; everything temporary lives and dies in one directory."""
    import torch
    from torch.utils import cpp_extension

    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    torch_lib = Path(torch.__file__).parent / "lib"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        objects = [Path(scratch) / f"{name}.o" for name in SOURCES]
        _run_all(
            [
                [*_compiler(), *FLAGS, abi, *includes, "-c", str(Path(__file__).parent / name), "-o", str(target)]
                for name, target in zip(SOURCES, objects, strict=True)
            ]
        )
        linked = Path(scratch) / library.name
        libraries = [f"-L{torch_lib}", f"-Wl,-rpath,{torch_lib}", "-ltorch_cpu", "-ltorch", "-lc10"]
        _run_all(
            [[*_compiler(), "-shared", *map(str, objects), *libraries, *_openmp_runtime(torch_lib), "-o", str(linked)]]
        )
        linked.replace(library)


def _openmp_runtime(torch_lib: Path) -> list[str]:
    """Link torch's own OpenMP runtime: a second one in the process would have its own threads and its own settings."""
    bundled = sorted([*torch_lib.glob("libgomp*.so*"), *(torch_lib.parent.parent / "torch.libs").glob("libgomp*.so*")])
    if bundled:
        return [str(bundled[0])]
    return [] if sys.platform == "darwin" else ["-fopenmp"]


def _run_all(commands: list[list[str]]) -> None:
    running = [
        (command, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # noqa: S603
        for command in commands
    ]
    finished = [(command, process.communicate()[0], process.returncode) for command, process in running]
    for command, output, code in finished:
        if code:
            tail = "\n".join(output.splitlines()[-25:])
            raise KernelBuildError(
                f"the C++ kernels did not build: {command[0]} ended with {code}\n"
                f"  compiler   {compiler_version()}\n"
                f"  command    {shlex.join(command)}\n"
                f"  next       use another compiler (CXX=g++), or run without them: GROUNDTHINK_WKV6=chunked "
                f"GROUNDTHINK_SSD=chunked GROUNDTHINK_CAUSAL_CONV1D=shifted\n"
                f"{tail}"
            )
