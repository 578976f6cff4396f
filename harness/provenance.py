"""Where a report was made: commit, versions, machine. Nothing here changes a number; all of it helps to find one."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "pytest", "pytest-xdist", "mamba-ssm", "causal-conv1d", "triton", "tokenizers")
PROJECT = Path(__file__).parents[1]


def collect(device: str) -> dict[str, Any]:
    """Commit, package versions and machine of this process. ``cuda`` imports torch to ask it for the GPU's name."""
    return {
        "git": git_state(PROJECT),
        "versions": {"python": platform.python_version(), **installed(PACKAGES)},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "gpu": gpu_name() if device == "cuda" else None,
    }


def git_state(directory: Path) -> dict[str, Any]:
    """``{"sha": ..., "dirty": ...}`` of the checkout that holds ``directory``; sha ``unknown`` outside of one.

    Dirty counts untracked files too: a new module changes results as much as an edited one.
    """
    sha = _git(directory, "rev-parse", "HEAD")
    status = _git(directory, "status", "--porcelain")
    return {"sha": sha or "unknown", "dirty": None if status is None else bool(status)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            ["git", "-C", str(directory), *arguments],  # noqa: S607  the user's own git
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Version of each of these packages that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """Name of the first GPU torch sees; None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
