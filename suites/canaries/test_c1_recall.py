"""C1: what was said is recalled, at once and after other text."""

import pytest


@pytest.mark.check("C1a")
def test_a_fact_is_recalled_at_once(canary):
    canary("C1a")


@pytest.mark.check("C1b")
def test_a_fact_survives_a_few_sentences(canary):
    canary("C1b")


@pytest.mark.check("C1c")
def test_a_fact_survives_ten_sentences(canary):
    canary("C1c")


@pytest.mark.check("C1d")
def test_two_facts_about_one_thing_are_recalled(canary):
    canary("C1d")
