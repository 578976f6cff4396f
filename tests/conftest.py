"""Set-up of the project's own tests: shapes are checked at run time here and only here."""

import os

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before anything imports kernels or models: their jaxtyping annotations are enforced in tests, free in use
install_import_hook(["kernels", "models"], "beartype.beartype")

pytest_plugins = ["pytester"]

# Sessions inside tests are no part of a job of GitHub Actions: its summary is not theirs
os.environ.pop("GITHUB_ACTIONS", None)

# Timings on shared machines say nothing about correctness, so no deadline
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
