"""Set-up of the project's own tests: shapes are checked at run time here and only here, where there is no GPU."""

import fcntl
import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

# Sessions inside tests are no part of a job of GitHub Actions: its summary is not theirs
os.environ.pop("GITHUB_ACTIONS", None)


def pytest_collectstart(collector):
    """Before anything in this folder is imported; who asks for help or a decision comes by and collects nothing."""
    _check_shapes()
    _set_up_hypothesis()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test that times the machine runs while no other worker of pytest-xdist runs any."""
    with _machine(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _machine(*, alone: bool) -> Iterator[None]:
    """The machine: shared with the other workers, or waited for until they have nothing in hand."""
    folder = Path(tempfile.gettempdir())
    with (folder / f"groundthink-tests-{os.getuid()}.lock").open("w") as lock:
        # whoever waits to be alone keeps the door, so that nobody slips in before
        with (folder / f"groundthink-tests-{os.getuid()}.door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            # closing would not do: a forked child that outlives its test has the file open, too
            fcntl.flock(lock, fcntl.LOCK_UN)


@functools.cache
def _check_shapes():
    import jaxtyping
    import torch

    # Before anything imports kernels or models: their jaxtyping annotations are enforced in tests, free in use.
    # torch.compile cannot follow the checks, and on a GPU it compiles what is trained
    if not torch.cuda.is_available():
        jaxtyping.install_import_hook(["kernels", "models"], "beartype.beartype")


@functools.cache
def _set_up_hypothesis():
    from hypothesis import HealthCheck, settings

    # Timings on shared machines say nothing about correctness, so no deadline
    settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
