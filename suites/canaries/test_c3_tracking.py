"""C3: preferences, reasons and corrections are tracked."""

import pytest


@pytest.mark.check("C3a")
def test_a_preference_survives_other_topics(canary):
    canary("C3a")


@pytest.mark.check("C3b")
def test_the_reason_behind_a_reference_is_recalled(canary):
    canary("C3b")


@pytest.mark.check("C3c")
def test_a_correction_replaces_the_old_value(canary):
    canary("C3c")
