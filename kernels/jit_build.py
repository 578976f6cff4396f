"""What the builds of our C++ and our CUDA kernels share: the compiler, the cache, and who may write into it.

One directory a key, and the key covers everything that changes the machine code. A lock of the operating system guards
a build and each attempt has a directory of its own, so a killed build leaves nothing that could block or spoil the next
one; a finished product appears by one atomic rename.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

# Start of the name of an attempt's directory.
_ATTEMPT = "attempt-"
_LINES_OF_OUTPUT = 25


class KernelBuildError(RuntimeError):
    """The compiler is there but does not build the kernels. The message ends with what it said."""


def compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, else ``c++``."""
    return shlex.split(os.environ.get("CXX", "c++")) or ["c++"]


@cache
def compiler_version() -> str | None:
    """First line of the compiler's ``--version``, or None where there is no C++ compiler (``CXX``, else ``c++``)."""
    lines = output_of([*compiler(), "--version"])
    return lines[0] if lines else None


def output_of(command: list[str]) -> list[str] | None:
    """The lines that a tool writes, errors too; None where there is no such tool or it fails."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return result.stdout.splitlines() if result.returncode == 0 else None


def cache_root() -> Path:
    """Where built kernels are kept: ``GROUNDTHINK_KERNEL_CACHE``, else in the user's cache."""
    named = os.environ.get("GROUNDTHINK_KERNEL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundthink" / "kernels"


def digest(files: Iterable[Path], parts: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that stand for the contents of files and for texts, in their order."""
    sha256 = hashlib.sha256()
    for path in files:
        sha256.update(path.read_bytes())
    for part in parts:
        sha256.update(part.encode() + b"\0")
    return sha256.hexdigest()[:16]


def build_once(directory: Path, products: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """Path of the last of ``products`` in ``directory``; ``make(attempt)`` puts them into its own directory first.

    Whoever comes while another process builds waits for it. What ``make`` raises is passed on, and nothing is left.
    """
    from filelock import FileLock

    finished = directory / products[-1]
    if finished.exists():
        return finished
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / "lock"):
        if not finished.exists():
            for leftover in directory.glob(f"{_ATTEMPT}*"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=_ATTEMPT, dir=directory) as attempt:
                make(Path(attempt))
                for product in products:
                    (Path(attempt) / product).replace(directory / product)
    return finished


def path_with_ninja() -> str:
    """``PATH``, and where it lacks ninja, the place where pip put it besides."""
    path = os.environ.get("PATH", os.defpath)
    if shutil.which("ninja") is not None:
        return path
    import ninja

    return os.pathsep.join([ninja.BIN_DIR, path])


def last_lines(output: str) -> str:
    """The end of a compiler's output, where its error is."""
    return "\n".join(output.splitlines()[-_LINES_OF_OUTPUT:])
