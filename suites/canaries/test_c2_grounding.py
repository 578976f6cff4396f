"""C2: constraints that are scattered over a long text are put together."""

import pytest


@pytest.mark.check("C2a")
def test_scattered_constraints_are_met(canary):
    canary("C2a")


@pytest.mark.check("C2b")
def test_a_violation_is_found(canary):
    canary("C2b")
