"""Builds the C++ operations once, with ninja through torch, and caches the library.

One directory a key, and the key covers everything that changes the machine code: our sources, the torch version, the
compiler, the flags, the OpenMP runtime and the CPU (we compile for the very CPU at hand). A lock of the operating
system guards the build and each attempt has a directory of its own, so a killed build leaves nothing that could block
or spoil the next one (torch's own lock is a file that outlives its process); a finished library appears by one atomic
rename.

    python -m kernels.cpu.build          builds now, so that the first run need not
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCES = ("wkv6.cpp", "ssd.cpp", "conv1d.cpp", "cross_entropy.cpp", "rms_norm.cpp")
HEADERS = ("linear_scan.h", "tensors.h", "vectors.h")
# No -ffast-math: NaN and inf must come through, and a sum must have the same order in every build.
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    # Apple's compiler has no OpenMP: there the kernels run on one thread
    "-fopenmp-simd" if sys.platform == "darwin" else "-fopenmp",
)

# Start of the name of an attempt's directory.
_ATTEMPT = "attempt-"
_WITHOUT = (
    "GROUNDTHINK_WKV6=chunked GROUNDTHINK_SSD=chunked GROUNDTHINK_CAUSAL_CONV1D=shifted "
    "GROUNDTHINK_CROSS_ENTROPY=torch GROUNDTHINK_RMS_NORM=torch GROUNDTHINK_GATED_RMS_NORM=torch"
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
    """Path of the built library; compiles on the first call on this machine, and then this process has it loaded.

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
    for part in (torch.__version__, str(compiler_version()), *_compiler(), *FLAGS, *_link_flags(), _cpu_model()):
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
    """One ninja build by torch, which also loads its result: what does not load is not published."""
    from torch.utils import cpp_extension

    for leftover in directory.glob(f"{_ATTEMPT}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_ATTEMPT, dir=directory) as attempt, _build_environment():
        try:
            built = cpp_extension.load(
                "kernels",
                [str(Path(__file__).parent / name) for name in SOURCES],
                extra_cflags=list(FLAGS),
                extra_ldflags=_link_flags(),
                build_directory=attempt,
                with_cuda=False,
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise KernelBuildError(_explain(str(error))) from error
        Path(built).replace(library)


@contextmanager
def _build_environment() -> Iterator[None]:
    """Ninja where torch looks for it, and no more compilers at once than a small machine holds."""
    before = dict(os.environ)
    if shutil.which("ninja") is None:
        import ninja

        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, before.get("PATH", os.defpath)])
    os.environ.setdefault("MAX_JOBS", "2")
    try:
        yield
    finally:
        for name in ("PATH", "MAX_JOBS"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def _link_flags() -> list[str]:
    import torch

    torch_lib = Path(torch.__file__).parent / "lib"
    return [f"-Wl,-rpath,{torch_lib}", *_openmp_runtime(torch_lib)]


def _openmp_runtime(torch_lib: Path) -> list[str]:
    """Link torch's own OpenMP runtime: a second one in the process would have its own threads and its own settings."""
    bundled = sorted([*torch_lib.glob("libgomp*.so*"), *(torch_lib.parent.parent / "torch.libs").glob("libgomp*.so*")])
    if bundled:
        return [str(bundled[0])]
    return [] if sys.platform == "darwin" else ["-fopenmp"]


def _explain(output: str) -> str:
    tail = "\n".join(output.splitlines()[-25:])
    return (
        f"the C++ kernels did not build\n"
        f"  compiler   {compiler_version()}\n"
        f"  next       use another compiler (CXX=g++), or run without them: {_WITHOUT}\n"
        f"{tail}"
    )


def main() -> None:
    """Build and say in one line what, where and how long it took."""
    began_s = time.monotonic()
    if compiler_version() is None:
        # not an error of an installation: the chunked kernels are there for this
        sys.stdout.write("kernels: no C++ compiler found, so they run in plain PyTorch; install g++ or set CXX\n")
        return
    library = build()
    sys.stdout.write(f"kernels: {library}, {compiler_version()}, {time.monotonic() - began_s:.1f} s\n")


if __name__ == "__main__":
    main()
