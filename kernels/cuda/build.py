"""Builds the CUDA operations once for the GPU at hand, with ninja, and caches the library (see ``kernels.jit_build``).

Every ``.cu`` file of this folder is compiled by nvcc, without PyTorch's headers, beside ``binding.cpp``, which alone
knows PyTorch and goes to the C++ compiler. What the assembler says of each kernel (registers, spills, memory) is kept
beside the library. ``GROUNDTHINK_CUDA_ARCH`` (such as ``9.0``) names another architecture than that of the GPU at hand.

    python -m kernels.cuda.build [--arch 9.0]     builds now and prints registers and spills; needs no GPU
"""

import argparse
import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from kernels import jit_build
from kernels.jit_build import KernelBuildError

# No --use_fast_math: it would flush small numbers to zero in every kernel, and what is approximated says so in place.
CUDA_FLAGS = ("-std=c++20", "-O3", "-lineinfo", "-Xptxas=-v", "-Xcompiler=-fPIC")
CPP_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-Wno-psabi")
LIBRARIES = ("-lc10", "-lc10_cuda", "-ltorch_cpu", "-lcudart")
# bf16 tensor cores and asynchronous copies came with 8.0
LEAST_CAPABILITY = (8, 0)

_LIBRARY, _FINGERPRINT = "kernels.so", "fingerprint.json"
_WITHOUT = "GROUNDTHINK_WKV6=chunked GROUNDTHINK_CROSS_ENTROPY=torch"
_ARCHITECTURE = re.compile(r"(\d+)\.(\d)([af]?)")


@dataclass(frozen=True)
class KernelBuild:
    """What the assembler made of one kernel.

    name          with its template arguments, without namespace and parameters
    arch          ``sm_90``
    registers     a thread
    spill_bytes   stored and loaded by a thread because registers ran out; 0 is healthy
    stack_bytes   local memory of a thread, spills in it
    shared_bytes  shared memory of a block that is known when it is compiled
    toolchain     ``nvcc 13.0.88``
    """

    name: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    toolchain: str


@dataclass(frozen=True)
class Toolkit:
    """An nvcc, and the flags by which a C++ compiler finds its headers and libraries."""

    nvcc: str
    version: str
    include_flags: tuple[str, ...]
    library_flags: tuple[str, ...]


def build() -> Path:
    """Path of the library for the GPU at hand; compiles on the first call on this machine.

    Raises ``KernelBuildError`` where something is missing (``available`` says what) or a compiler fails.
    """
    import torch

    if torch.version.cuda is None:
        raise KernelBuildError(_without_cuda())
    found = _built()
    if found is not None:
        return found
    toolkit, arch = _require_toolkit(), architecture()

    def make(attempt: Path) -> None:
        _run_ninja(attempt, toolkit, arch, link=True)
        kernels = list(_assembled(attempt, toolkit))
        (attempt / _FINGERPRINT).write_text(json.dumps([asdict(kernel) for kernel in kernels], indent=1) + "\n")

    return jit_build.build_once(_directory(toolkit), (_FINGERPRINT, _LIBRARY), make)


def available() -> tuple[bool, str]:
    """Whether the kernels can run here, and why: a GPU, and a library that is built or can be. Builds nothing."""
    import torch

    if torch.version.cuda is None:
        return False, _without_cuda()
    if not torch.cuda.is_available():
        return False, "no GPU that torch can use: check that nvidia-smi lists one and that its driver is recent enough"
    unfit = _unfit()
    if unfit is not None:
        return False, unfit
    if _built() is not None:
        return True, f"built for {_code(architecture())}"
    lacking = _lacking()
    if lacking is not None:
        return False, lacking
    return True, f"nvcc and a C++ compiler build it for {_code(architecture())}"


def fingerprint() -> list[KernelBuild]:
    """What the assembler said of each kernel of the library that ``build`` gives, by name."""
    described = json.loads((build().parent / _FINGERPRINT).read_text())
    return [KernelBuild(**kernel) for kernel in described]


def assemble(arch: str) -> list[KernelBuild]:
    """Compile the kernels for an architecture (``9.0``) and throw them away: registers and spills without a GPU."""
    toolkit = _require_toolkit()
    with tempfile.TemporaryDirectory() as folder:
        _run_ninja(Path(folder), toolkit, arch, link=False)
        return list(_assembled(Path(folder), toolkit))


def architecture() -> str:
    """What is compiled for: ``GROUNDTHINK_CUDA_ARCH``, else the compute capability of the current GPU, as ``9.0``.

    Raises ``KernelBuildError`` where neither is there.
    """
    import torch

    named = os.environ.get("GROUNDTHINK_CUDA_ARCH")
    if named:
        return named
    if not torch.cuda.is_available():
        raise KernelBuildError(
            "kernels are built for one architecture, and there is no GPU: set GROUNDTHINK_CUDA_ARCH=9.0"
        )
    return _dotted(torch.cuda.get_device_capability())


def parse_assembly(output: str, toolchain: str) -> Iterator[KernelBuild]:
    """The kernels in what ``ptxas -v`` wrote, in its order."""
    properties = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<memory>[^\n]*)",
        re.DOTALL,
    )
    for found in properties.finditer(output):
        shared = re.search(r"(\d+) bytes smem", found["memory"])
        yield KernelBuild(
            name=short_name(_demangled(found["name"])),
            arch=found["arch"],
            registers=int(found["registers"]),
            spill_bytes=int(found["stores"]) + int(found["loads"]),
            stack_bytes=int(found["stack"]),
            shared_bytes=int(shared[1]) if shared else 0,
            toolchain=toolchain,
        )


def short_name(declaration: str) -> str:
    """A demangled function without return type, namespaces and parameters.

    >>> short_name("void groundthink::(anonymous namespace)::scan<64, (bool)1, at::Half>(float*, int)")
    'scan<64, (bool)1, at::Half>'
    """
    text = declaration.replace("(anonymous namespace)::", "")
    begin = depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == "(":
            return text[begin:i]
        if depth == 0 and letter in " :":
            begin = i + 1
    return text[begin:]


def _unfit() -> str | None:
    """Why what is compiled for cannot run on the current GPU; None where it can."""
    import torch

    capability, arch = torch.cuda.get_device_capability(), architecture()
    if capability < LEAST_CAPABILITY:
        return (
            f"needs a GPU of compute capability {_dotted(LEAST_CAPABILITY)} or newer, and this is {_dotted(capability)}"
        )
    found = _ARCHITECTURE.fullmatch(arch)
    if found is None or int(found[1]) != capability[0] or int(found[2]) > capability[1]:
        return f"GROUNDTHINK_CUDA_ARCH={arch} does not run on this GPU: unset it or write {_dotted(capability)}"
    return None


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*.cu"))


def _everything() -> list[Path]:
    folder = Path(__file__).parent
    return sorted(path for pattern in ("*.cu", "*.cuh", "*.cpp", "*.h") for path in folder.glob(pattern))


def _built() -> Path | None:
    """The finished library: of the toolchain that is here, or where there is none, of any."""
    if _lacking() is None:
        found = [_directory(_require_toolkit()) / _LIBRARY]
    else:
        found = sorted(jit_build.cache_root().glob(f"cuda-{_inputs_key()}-*/{_LIBRARY}"))
    return next((path for path in found if path.exists()), None)


def _directory(toolkit: Toolkit) -> Path:
    parts = (toolkit.version, str(jit_build.compiler_version()), *jit_build.compiler())
    return jit_build.cache_root() / f"cuda-{_inputs_key()}-{jit_build.digest([], parts)}"


def _inputs_key() -> str:
    """What the library depends on besides the tools that made it."""
    import torch

    sources = _everything()
    parts = (torch.__version__, str(torch.version.cuda), architecture(), *CUDA_FLAGS, *CPP_FLAGS, *LIBRARIES)
    return jit_build.digest(sources, (*(path.name for path in sources), *parts))


def _lacking() -> str | None:
    """What a build needs and this machine has not, with how to get it; None where all is there."""
    import torch

    toolkit = find_toolkit()
    if toolkit is None:
        return (
            f"no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda: install the CUDA toolkit {torch.version.cuda or ''}"
        ).rstrip()
    needed, given = (str(version).split(".")[0] for version in (torch.version.cuda, toolkit.version))
    if torch.version.cuda is not None and needed != given:
        return (
            f"{toolkit.nvcc} is of CUDA {toolkit.version}, and torch {torch.__version__} of CUDA {torch.version.cuda}: "
            f"install a CUDA toolkit {needed} and set CUDA_HOME"
        )
    if jit_build.compiler_version() is None:
        return "no C++ compiler found: install g++ or set CXX"
    return None


def find_toolkit() -> Toolkit | None:
    """The nvcc of ``CUDA_HOME``, else of ``PATH``, else of ``/usr/local/cuda``; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((toolkit for toolkit in map(_toolkit, places) if toolkit is not None), None)


@cache
def _toolkit(nvcc: str) -> Toolkit | None:
    version = re.search(r"V(\d+\.\d+\.\d+)", "\n".join(jit_build.output_of([nvcc, "--version"]) or []))
    # its own word for where its headers are: an nvcc on PATH may be a link or a script far from them
    plan = jit_build.output_of([nvcc, "--dryrun", "-c", "nothing.cpp"])
    if version is None or plan is None:
        return None
    flags: dict[str, tuple[str, ...]] = {}
    for line in plan:
        name, _, value = line.removeprefix("#$ ").partition("=")
        if name in ("INCLUDES", "LIBRARIES"):
            flags[name] = tuple(shlex.split(value))
    return Toolkit(nvcc, version[1], flags["INCLUDES"], flags["LIBRARIES"])


def _require_toolkit() -> Toolkit:
    toolkit, lacking = find_toolkit(), _lacking()
    if toolkit is None or lacking is not None:
        raise KernelBuildError(f"the CUDA kernels cannot be built: {lacking}. Without them: {_WITHOUT}")
    return toolkit


def _without_cuda() -> str:
    import torch

    return f"torch {torch.__version__} is built without CUDA: install a CUDA build of it (https://pytorch.org)"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _code(arch: str) -> str:
    """``sm_90`` for ``9.0``."""
    found = _ARCHITECTURE.fullmatch(arch)
    if found is None:
        raise KernelBuildError(f"{arch!r} is no CUDA architecture; write it as 9.0 or 9.0a")
    return "sm_" + "".join(found.groups())


def _run_ninja(folder: Path, toolkit: Toolkit, arch: str, *, link: bool) -> None:
    """One object a source, side by side; with ``link`` also the binding and the library."""
    (folder / "build.ninja").write_text("\n".join(_ninja_lines(toolkit, arch, link=link)) + "\n")
    jobs = os.environ.get("MAX_JOBS")
    command = ["ninja", "-C", str(folder), *(["-j", jobs] if jobs else [])]
    environment = {**os.environ, "PATH": jit_build.path_with_ninja()}
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    if done.returncode:
        raise KernelBuildError(
            f"the CUDA kernels did not build\n"
            f"  compilers  {toolkit.nvcc} {toolkit.version} and {jit_build.compiler_version()}, for {_code(arch)}\n"
            f"  next       other compilers (CUDA_HOME=..., CXX=g++-13), or run without them: {_WITHOUT}\n"
            f"{jit_build.last_lines(done.stdout)}"
        )


def _ninja_lines(toolkit: Toolkit, arch: str, *, link: bool) -> Iterator[str]:
    import torch

    code, torch_folder = _code(arch), Path(torch.__file__).parent
    cuda = [toolkit.nvcc, f"-ccbin={jit_build.compiler()[0]}", *CUDA_FLAGS]
    cuda += [f"-gencode=arch={code.replace('sm', 'compute')},code={code}"]
    # the assembler's words go to a file, and to the terminal only when it fails
    yield from _rule("cuda", [*cuda, "-c"], "$in -o $out > $out.log 2>&1 || { cat $out.log; exit 1; }")
    objects = [f"{path.stem}.o" for path in _sources()]
    for path, made in zip(_sources(), objects, strict=True):
        yield f"build {made}: cuda {_path(path)}"
    if not link:
        return
    headers = ["-isystem", str(torch_folder / "include"), *toolkit.include_flags]
    yield from _rule("cpp", [*jit_build.compiler(), *CPP_FLAGS, *headers, "-c"], "$in -o $out")
    yield f"build binding.o: cpp {_path(Path(__file__).parent / 'binding.cpp')}"
    libraries = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", *toolkit.library_flags, *LIBRARIES]
    # -z defs: what does not resolve is an error of the build, not of the first process that loads the library
    yield from _rule("library", [*jit_build.compiler(), "-shared", "-Wl,-z,defs"], "$in -o $out", libraries)
    yield f"build {_LIBRARY}: library binding.o {' '.join(objects)}"


def _rule(name: str, command: Iterable[str], arguments: str, after: Iterable[str] = ()) -> Iterator[str]:
    words = [shlex.join(words).replace("$", "$$") for words in (command, after)]
    yield f"rule {name}"
    yield f"  command = {words[0]} {arguments} {words[1]}".rstrip()


def _path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _assembled(folder: Path, toolkit: Toolkit) -> Iterator[KernelBuild]:
    for log in sorted(folder.glob("*.o.log")):
        output = log.read_text()
        kernels = list(parse_assembly(output, f"nvcc {toolkit.version}"))
        if not kernels:
            source = log.name.removesuffix(".o.log")
            raise KernelBuildError(f"{toolkit.nvcc} {toolkit.version} named no kernel of {source}.cu:\n{output}")
        yield from kernels


def _demangled(name: str) -> str:
    """By the C++ runtime that torch has loaded anyway."""
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    address = demangle(name.encode(), None, None, ctypes.byref(status))
    if status.value:
        return name
    text = ctypes.string_at(address).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(address))
    return text


def main() -> None:
    """Build, and print what the assembler made of each kernel."""
    parser = argparse.ArgumentParser(description="Build the CUDA kernels now and print their registers and spills.")
    parser.add_argument("--arch", help="architecture to compile for, such as 9.0; that of the GPU at hand if left out")
    arch = parser.parse_args().arch
    if arch:
        os.environ["GROUNDTHINK_CUDA_ARCH"] = arch

    import torch

    began_s = time.monotonic()
    try:
        if torch.version.cuda is None:
            kernels, where = assemble(architecture()), f"compiled, not linked: {_without_cuda()}"
        else:
            where = str(build())
            kernels = fingerprint()
    except KernelBuildError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{'kernel':64} {'arch':>7} {'registers':>9} {'spill B':>8} {'stack B':>8} {'shared B':>8}\n")
    for k in kernels:
        line = f"{k.name:64} {k.arch:>7} {k.registers:9} {k.spill_bytes:8} {k.stack_bytes:8} {k.shared_bytes:8}"
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"kernels: {where}, {kernels[0].toolchain}, {time.monotonic() - began_s:.1f} s\n")


if __name__ == "__main__":
    main()
