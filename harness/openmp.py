"""How OpenMP threads wait for work. Environment only, read once when torch loads OpenMP: call it before that."""

import os
from collections.abc import MutableMapping

# A short spin (some ten microseconds) catches the next of a step's thousand small parallel regions without a sleep and
# a wake-up, which cost a fifth of a 3.5M step. Beside other workers on the same cores it would starve them instead.
SHORT_SPIN, NO_SPIN = "2000", "0"


def settle_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads spin shortly where this process has the cores to itself, and sleep at once in an xdist worker.

    Values set by the user stay. A worker inherits what its controller set, and takes the spin back.
    """
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("GOMP_SPINCOUNT", SHORT_SPIN)
    if "PYTEST_XDIST_WORKER" in environment and environment["GOMP_SPINCOUNT"] == SHORT_SPIN:
        environment["GOMP_SPINCOUNT"] = NO_SPIN
