"""C5: interests and traits stay with a person."""

import pytest


@pytest.mark.check("C5a")
def test_an_interest_is_recalled(canary):
    canary("C5a")


@pytest.mark.check("C5b")
def test_a_persona_stays_consistent(canary):
    canary("C5b")


@pytest.mark.check("C5c")
def test_a_change_of_interest_is_followed(canary):
    canary("C5c")
