"""What the compiler made of our CUDA kernels, held against the builds on record (kernel_builds.toml).

Registers and spills are artefacts of a build: they say nothing of whether a kernel is right, but a change of them
explains a change of its speed. A build is compared with the one on record of the same architecture and toolchain.

    python -m harness.kernel_builds [--arch 9.0]     prints a build as an entry of the table; with --arch without a GPU
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import HarnessError
from harness.thresholds import explain_validation
from kernels.cuda.build import KernelBuild, assemble, fingerprint

BUILDS_PATH = Path(__file__).with_name("kernel_builds.toml")
PRINT_COMMAND = "python -m harness.kernel_builds"
_HEADER = "[[builds]]"

_Count = Annotated[int, Field(ge=0)]


class BuildsError(HarnessError):
    """kernel_builds.toml is malformed."""


class StoredKernel(BaseModel):
    """What is on record of one kernel: registers a thread, spilled bytes a thread, static shared memory a block."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    registers: _Count
    spill_bytes: _Count
    shared_bytes: _Count


class StoredBuild(BaseModel):
    """The kernels of one architecture (``sm_90``) and toolchain (``nvcc 13.0.88``), by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str
    toolchain: str
    kernels: tuple[StoredKernel, ...] = Field(min_length=1)


class ReferenceKernel(BaseModel):
    """What somebody else's kernel for the same operation and head size needs, to stand beside ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: str
    head_size: int
    registers: _Count
    source: str = Field(min_length=1)

    @property
    def title(self) -> str:
        """Kernel and head size."""
        return f"{self.kernel}, head size {self.head_size}"

    def stands_beside(self, kernel_name: str) -> bool:
        """Whether a kernel of ours does the same: ``wkv6_forward_kernel<float, float, 32, false>``."""
        # head sizes are the only whole numbers among the template arguments
        sizes = re.findall(r"(?<=[<,\s])\d+(?=[,>])", kernel_name)
        return kernel_name.startswith(f"{self.kernel}<") and str(self.head_size) in sizes


class Builds(BaseModel):
    """The whole table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    builds: tuple[StoredBuild, ...] = ()
    references: tuple[ReferenceKernel, ...] = ()

    def find(self, arch: str, toolchain: str) -> StoredBuild | None:
        """The build on record; None where there is none."""
        return next((b for b in self.builds if (b.arch, b.toolchain) == (arch, toolchain)), None)


@dataclass(frozen=True)
class Difference:
    """One kernel that is not what the record says, in words."""

    kernel: str
    what: str


def load_builds(path: Path = BUILDS_PATH) -> Builds:
    """Read and validate the table. Raises ``BuildsError`` that names the entry at fault."""
    try:
        return Builds.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as error:
        raise BuildsError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise BuildsError(f"{path}: {explain_validation(error)}") from error


def differences(built: Sequence[KernelBuild], stored: StoredBuild) -> list[Difference]:
    """Where a build departs from the one on record: other figures, a kernel too many, one too few."""
    now = {kernel.name: _figures(kernel) for kernel in built}
    before = {kernel.name: _figures(kernel) for kernel in stored.kernels}
    found = []
    for name in dict.fromkeys([*before, *now]):
        if name not in now:
            found.append(Difference(name, "on record, and not in this build"))
        elif name not in before:
            found.append(Difference(name, "in this build, and not on record"))
        elif now[name] != before[name]:
            changed = [f"{key} {was} -> {now[name][key]}" for key, was in before[name].items() if was != now[name][key]]
            found.append(Difference(name, ", ".join(changed)))
    return found


def render(built: Sequence[KernelBuild]) -> str:
    """A build as an entry of the table."""
    first = built[0]
    lines = [_HEADER, f'arch = "{first.arch}"', f'toolchain = "{first.toolchain}"', "kernels = ["]
    for kernel in sorted(built, key=lambda kernel: kernel.name):
        figures = ", ".join(f"{key} = {value}" for key, value in _figures(kernel).items())
        lines.append(f'  {{ name = "{kernel.name}", {figures} }},')
    return "\n".join([*lines, "]"]) + "\n"


def _figures(kernel: KernelBuild | StoredKernel) -> dict[str, int]:
    return {
        "registers": kernel.registers,
        "spill_bytes": kernel.spill_bytes,
        "shared_bytes": kernel.shared_bytes,
    }


def main() -> None:
    """Print the build of this machine, or for ``--arch 9.0`` of its compiler alone, as an entry of the table."""
    parser = argparse.ArgumentParser(prog=PRINT_COMMAND, description=main.__doc__)
    parser.add_argument("--arch", help="compute capability to compile for, such as 9.0; needs no GPU")
    arch = parser.parse_args().arch
    sys.stdout.write(render(fingerprint() if arch is None else assemble(arch)))


if __name__ == "__main__":
    main()
