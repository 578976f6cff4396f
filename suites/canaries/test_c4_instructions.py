"""C4: an instruction is kept over turns."""

import pytest


@pytest.mark.check("C4a")
def test_a_format_is_kept(canary):
    canary("C4a")


@pytest.mark.check("C4b")
def test_a_style_is_kept(canary):
    canary("C4b")


@pytest.mark.check("C4c")
def test_three_instructions_are_kept_together(canary):
    canary("C4c")
