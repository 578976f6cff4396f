"""The plan of a session under ``--graduate``."""

import pytest

from harness.graduation.plan import Plan, make_plan, recipes_of
from harness.plugin.settings import SETTINGS, TABLES, describe_subject


def plan_of(config: pytest.Config) -> Plan:
    """What this session would run and train under ``--graduate``."""
    settings, tables = config.stash[SETTINGS], config.stash[TABLES]
    recipes = recipes_of(settings.scale, tables.checks, tables.evidence)
    subject = describe_subject(config)
    return make_plan(
        model=settings.model,
        scale=settings.scale,
        device=settings.device,
        seeds=len(settings.seeds),
        corpus=subject.corpus if subject else settings.corpus,
        embedded_corpus=subject.embedded_corpus if subject else False,
        trainings=config.hook.pytest_groundthink_trainings(settings=settings, recipes=recipes) or [],
        checks=tables.checks,
        table=tables.evidence,
    )
