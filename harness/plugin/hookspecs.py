"""Hooks the plugin calls. Suites implement them: the plugin itself knows neither models nor corpora."""

from collections.abc import Sequence

import pytest

from harness.checks import Check
from harness.graduation.plan import PlannedTraining
from harness.plugin.settings import Settings, Subject
from harness.tables import TablePaths


@pytest.hookspec(firstresult=True)
def pytest_groundthink_tables(config: pytest.Config) -> TablePaths | None:
    """The paths of checks.toml, thresholds.toml and evidence.toml; the plugin's own tests bring small ones."""


def pytest_groundthink_validate(settings: Settings) -> None:
    """Refuse a model, a corpus or an override that does not exist, before anything runs.

    Called when a session over the suites is configured, in the controller and in every worker. Raise HarnessError:
    its message is shown and pytest exits with 4.
    """


def pytest_groundthink_prepare(settings: Settings) -> None:
    """Make sure that the subject can be built and its data read, once, before any check or worker needs them.

    Called in the controller when a session that runs suites starts. Raise HarnessError: its message is shown once,
    instead of once a check, and pytest exits with 4.
    """


@pytest.hookspec(firstresult=True)
def pytest_groundthink_trainings(settings: Settings, recipes: Sequence[str]) -> list[PlannedTraining] | None:
    """The trainings behind some recipes, each once, and what the store holds of them. Nothing is trained."""


@pytest.hookspec(firstresult=True)
def pytest_groundthink_describe_subject(settings: Settings) -> Subject | None:
    """What is under test: its branches decide which checks are NA, the rest goes into the report.

    Called once a process, before its first check; in the controller when the report is written. Raise HarnessError if
    the subject cannot be described: every check is then INVALID.
    """


@pytest.hookspec(firstresult=True)
def pytest_groundthink_examples(settings: Settings, check: Check) -> list[str] | None:
    """What a check asks a model, for ``--explain``: where the examples come from, then each. Nothing is trained.

    None for a check that has none to show. Raise HarnessError: ``--explain`` then ends with its message.
    """
