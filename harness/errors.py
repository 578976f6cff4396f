"""The family of errors that a user of the harness can cause, and the wording they share."""

from collections.abc import Iterable
from difflib import get_close_matches


class HarnessError(ValueError):
    """Something the harness was given cannot serve. The message says what, where, what was allowed, what to do next.

    The plugin shows the message alone, without a traceback: as bad usage (exit 4) before the run, as INVALID in it.
    """


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The end of a message about an unknown name: near matches, if any, and the whole list.

    >>> did_you_mean("GF-HM", ["GF-MH", "HY"])
    'did you mean GF-MH? Known: GF-MH, HY'
    """
    known = list(options)
    by_lower = {option.lower(): option for option in known}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}Known: {', '.join(known) or 'none'}"
