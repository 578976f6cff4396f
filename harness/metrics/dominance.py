"""Which of two branches dominates, when several measures each have a say."""

from collections.abc import Mapping

from harness.metrics.intervals import Interval


def dominant(shares: Mapping[str, Interval] | None) -> str | None:
    """The branch whose share lies above one half with its whole interval; None when there is none."""
    return next((branch for branch, share in (shares or {}).items() if share.low > 0.5), None)


def disagreement(shares: Mapping[str, Mapping[str, Interval] | None]) -> str:
    """Which measure names which branch, where two measures name different ones; empty where none contradicts another.

    ``shares`` holds the shares by branch of each measure. One that names no branch contradicts nothing.
    """
    named = {measure: branch for measure, found in shares.items() if (branch := dominant(found)) is not None}
    if len(set(named.values())) < 2:
        return ""
    return "; ".join(f"{branch} dominates by {measure}" for measure, branch in named.items())
