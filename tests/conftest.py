"""Set-up of the project's own tests: shapes are checked at run time here and only here, where there is no GPU."""

import os

import jaxtyping
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# Sessions inside tests are no part of a job of GitHub Actions: its summary is not theirs
os.environ.pop("GITHUB_ACTIONS", None)

# Timings on shared machines say nothing about correctness, so no deadline
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config):
    # Before anything imports kernels or models: their jaxtyping annotations are enforced in tests, free in use.
    # - a decision comes by here, too: without paths pytest starts from the folder of the tests
    # - torch.compile cannot follow the checks, and on a GPU it compiles what is trained
    if not config.option.graduate and not torch.cuda.is_available():
        jaxtyping.install_import_hook(["kernels", "models"], "beartype.beartype")
