"""Builds the C++ operations once, with ninja through torch, and caches the library (see ``kernels.jit_build``).

The key covers our sources, the torch version, the compiler, the flags, the OpenMP runtime and the CPU: we compile for
the very CPU at hand. By itself torch waits forever on the lock file of a killed build, for that file outlives its
process; in a directory that no other attempt has used there is none.

    python -m kernels.cpu.build          builds now, so that the first run need not
"""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels.jit_build import (
    KernelBuildError,
    build_once,
    cache_root,
    compiler,
    compiler_version,
    digest,
    last_lines,
    path_with_ninja,
)

SOURCES = ("wkv6.cpp", "ssd.cpp", "conv1d.cpp", "cross_entropy.cpp", "rms_norm.cpp")
HEADERS = ("linear_scan.h", "tensors.h", "vectors.h")
# No -ffast-math: NaN and inf must come through, and a sum must have the same order in every build.
FLAGS = (
    *("-std=c++20", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
    # Apple's compiler has no OpenMP: there the kernels run on one thread
    "-fopenmp-simd" if sys.platform == "darwin" else "-fopenmp",
)

_LIBRARY = "kernels.so"
_WITHOUT = (
    "GROUNDTHINK_WKV6=chunked GROUNDTHINK_SSD=chunked GROUNDTHINK_CAUSAL_CONV1D=shifted "
    "GROUNDTHINK_CROSS_ENTROPY=torch GROUNDTHINK_RMS_NORM=torch GROUNDTHINK_GATED_RMS_NORM=torch"
)


def build() -> Path:
    """Path of the built library; compiles on the first call on this machine, and then this process has it loaded.

    Raises ``KernelBuildError`` when the compiler fails.
    """
    return build_once(cache_root() / _key(), (_LIBRARY,), _compile)


def _key() -> str:
    import torch

    parts = (torch.__version__, str(compiler_version()), *compiler(), *FLAGS, *_link_flags(), _cpu_model())
    return digest([Path(__file__).parent / name for name in (*SOURCES, *HEADERS)], parts)


def _cpu_model() -> str:
    """What ``-march=native`` depends on: the model of the CPU and its instruction sets."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in info.read_text().splitlines() if line.startswith(wanted)}))


def _compile(attempt: Path) -> None:
    """One ninja build by torch, which also loads its result: what does not load is not published."""
    from torch.utils import cpp_extension

    with _build_environment():
        try:
            built = cpp_extension.load(
                "kernels",
                [str(Path(__file__).parent / name) for name in SOURCES],
                extra_cflags=list(FLAGS),
                extra_ldflags=_link_flags(),
                build_directory=str(attempt),
                with_cuda=False,
                is_python_module=False,
            )
        except (RuntimeError, OSError) as error:
            raise KernelBuildError(_explain(str(error))) from error
    # torch numbers the libraries of one process
    Path(built).replace(attempt / _LIBRARY)


@contextmanager
def _build_environment() -> Iterator[None]:
    """Ninja where torch looks for it, and no more compilers at once than a small machine holds."""
    before = dict(os.environ)
    os.environ["PATH"] = path_with_ninja()
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
    return (
        f"the C++ kernels did not build\n"
        f"  compiler   {compiler_version()}\n"
        f"  next       use another compiler (CXX=g++), or run without them: {_WITHOUT}\n"
        f"{last_lines(output)}"
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
