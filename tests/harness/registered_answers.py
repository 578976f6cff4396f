"""The known answers that a module registers, for the tests of that module."""

from harness.known_answers import KnownAnswer, _registry


def registered_in(module):
    """All that a module registers."""
    return [entry.function for entry in _registry.values() if entry.function.__module__ == module.__name__]


def fails(function: KnownAnswer):
    """Whether a known answer says no."""
    try:
        function()
    except AssertionError:
        return True
    return False
