"""Known-answer tests: before a metric measures a model it measures inputs whose answer is known.

A metric's module registers functions that raise AssertionError when the metric misbehaves, negative controls among
them. They run once a process, before the first check that relies on them; a check whose known answers fail is INVALID.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from harness.checks import Check
from harness.errors import HarnessError

KnownAnswer = Callable[[], None]
F = TypeVar("F", bound=KnownAnswer)


@dataclass(frozen=True)
class Registered:
    """A known-answer test and the checks whose metrics it vouches for."""

    function: KnownAnswer
    checks: frozenset[str]

    @property
    def name(self) -> str:
        """Where it lives: module and function."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


_registry: dict[str, Registered] = {}


class KnownAnswerError(HarnessError):
    """A known-answer test of a check failed, or the modules that should hold one hold none."""


def known_answer(*checks: str) -> Callable[[F], F]:
    """Register a function as a known-answer test of these checks: ``@known_answer("G2")``."""
    assert checks, "name the checks this known-answer test vouches for: @known_answer('G2')"

    def register(function: F) -> F:
        entry = Registered(function, frozenset(checks))
        _registry[entry.name] = entry
        return function

    return register


def registered(check: Check) -> list[Registered]:
    """The known-answer tests of a check, imported from the modules that checks.toml names, sorted by name."""
    for module in check.known_answers:
        importlib.import_module(module)
    found = [entry for name, entry in sorted(_registry.items()) if check.id in entry.checks]
    if check.known_answers and not found:
        raise KnownAnswerError(
            f"{check.id}: {', '.join(check.known_answers)} registers no known-answer test for it; "
            f"decorate one with @known_answer({check.id!r})"
        )
    return found


@cache
def _failure(name: str) -> str:
    """Run one test, once a process: empty when it holds, else what it found."""
    try:
        _registry[name].function()
    except AssertionError as error:
        return str(error) or "assertion failed"
    return ""


def run_known_answers(check: Check) -> str:
    """Run what vouches for a check and say how it went, as a record carries it: ``ok (3)``, or ``none``.

    Raises KnownAnswerError that names every test that failed. An exception other than AssertionError passes through.
    """
    entries = registered(check)
    failures = [(entry.name, _failure(entry.name)) for entry in entries]
    broken = [f"{name}: {message}" for name, message in failures if message]
    if broken:
        raise KnownAnswerError(
            f"{len(broken)} of {len(entries)} known-answer tests of {check.id} failed, so its numbers mean nothing:\n  "
            + "\n  ".join(broken)
        )
    return f"ok ({len(entries)})" if entries else "none"
