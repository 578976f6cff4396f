"""Set-up of the project's own tests: shapes are checked at run time here and only here."""

import os

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# Sessions inside tests are no part of a job of GitHub Actions: its summary is not theirs
os.environ.pop("GITHUB_ACTIONS", None)

# Timings on shared machines say nothing about correctness, so no deadline
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config):
    # Before anything imports kernels or models: their jaxtyping annotations are enforced in tests, free in use. A
    # decision comes by here, too: without paths pytest starts from the folder of the tests
    if not config.option.graduate:
        jaxtyping.install_import_hook(["kernels", "models"], "beartype.beartype")


@pytest.fixture(autouse=True)
def _as_in_use_on_a_gpu(request):
    """torch.compile cannot follow the checks of shapes when it compiles a layer for the second time."""
    checked = request.node.get_closest_marker("gpu") is None
    jaxtyping.config.update("jaxtyping_disable", not checked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
