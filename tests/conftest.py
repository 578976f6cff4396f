"""Set-up of the project's own tests: shapes are checked at run time here and only here, where there is no GPU."""

import functools
import os

pytest_plugins = ["pytester"]

# Sessions inside tests are no part of a job of GitHub Actions: its summary is not theirs
os.environ.pop("GITHUB_ACTIONS", None)


def pytest_collectstart(collector):
    """Before anything in this folder is imported; who asks for help or a decision comes by and collects nothing."""
    _check_shapes()
    _set_up_hypothesis()


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
