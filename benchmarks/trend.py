"""Did anything get slower? Two runs of a benchmark, row by row.

    python -m benchmarks.trend OLD NEW [--limit 1.10]

OLD and NEW are files that --json wrote. A row got slower when both its median and its least time are more than the
limit times those of OLD: what else the machine was doing raises a median, a slower program raises both. A row of ours
that OLD has and NEW lacks is lost. Rows of peers are shown and decide nothing.

Exit code 0: nothing got slower and nothing was lost, or there is nothing to compare with: no OLD yet, another device,
another version of the file. 1: something got slower or was lost. 2: bad usage, or a file that holds no times.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.record import OtherSchemaError, Record, RecordError, Row, read

LIMIT = 1.10


@dataclass(frozen=True)
class Change:
    """One row in two runs. None stands for a run that lacks it, or in which it did not run."""

    old: Row | None
    new: Row | None
    limit: float

    @property
    def row(self) -> Row:
        """That of either run, for its names."""
        row = self.new or self.old
        assert row is not None
        return row

    @property
    def ratio(self) -> float | None:
        """Median now over median then: more than 1 is slower."""
        return _ratio(self.old, self.new, "median_ms")

    @property
    def verdict(self) -> str:
        """``slower``, ``lost``, ``new``, ``faster`` or ``same``."""
        if self.old is None:
            return "new"
        least = _ratio(self.old, self.new, "least_ms")
        if self.ratio is None or least is None:
            return "lost"
        if min(self.ratio, least) > self.limit:
            return "slower"
        return "faster" if max(self.ratio, least) < 1 / self.limit else "same"

    @property
    def counts(self) -> bool:
        """Whether it makes the comparison fail."""
        return self.verdict in ("slower", "lost") and not self.row.peer


def _ratio(old: Row | None, new: Row | None, field: str) -> float | None:
    if old is None or new is None:
        return None
    before, now = getattr(old, field), getattr(new, field)
    return None if before is None or now is None else now / before


def compare(old: Record, new: Record, limit: float) -> list[Change]:
    """Every row of either, in the order of NEW, then what it lacks. A row of OLD without times is as if it were not."""
    before = {row.key: row for row in old.rows if row.median_ms is not None}
    now = {row.key: row for row in new.rows}
    changes = [
        Change(before.get(key), row, limit) for key, row in now.items() if row.median_ms is not None or key in before
    ]
    return changes + [Change(row, None, limit) for key, row in before.items() if key not in now]


def table(changes: Sequence[Change], title: str) -> Table:
    """A line a row, what counts first."""
    shown = Table("", "benchmark", "size", "candidate", "part", "mode", title=title, title_justify="left")
    for heading in ("old ms", "new ms", "new/old"):
        shown.add_column(heading, justify="right")
    for change in sorted(changes, key=lambda change: not change.counts):
        row, ratio = change.row, change.ratio
        times = [
            "-" if one is None or one.median_ms is None else f"{one.median_ms:.3f}" for one in (change.old, change.new)
        ]
        verdict = f"{change.verdict}, a peer" if row.peer else change.verdict
        shown.add_row(
            *(verdict, row.benchmark, row.case, row.candidate, row.part, row.mode),
            *(*times, "" if ratio is None else f"{ratio:.3f}"),
        )
    return shown


def _read_old(path: Path) -> Record | None:
    """The run before; None, and a line that says why, where another version of the benchmarks wrote it."""
    try:
        return read(path)
    except OtherSchemaError as error:
        print(f"nothing to compare with: {error}")
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help=f"new/old from which a row is slower (default {LIMIT})"
    )
    options = parser.parse_args(arguments)
    if options.limit < 1:
        parser.error(f"--limit {options.limit:g}: at least 1; 1.10 lets a row take a tenth more")
    try:
        new = read(options.new)
        if not options.old.exists():
            print(f"nothing to compare with: there is no {options.old} yet, so this is the first run")
            return 0
        old = _read_old(options.old)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2
    if old is None:
        return 0
    if (old.benchmark, old.device) != (new.benchmark, new.device):
        print(
            f"nothing to compare with: {options.old} has {old.benchmark} on {old.device}, "
            f"{options.new} has {new.benchmark} on {new.device}"
        )
        return 0
    changes = compare(old, new, options.limit)
    Console(width=170).print(table(changes, f"old: {old.machine()}\nnew: {new.machine()}"))
    counted = [change for change in changes if change.counts]
    slower = sum(change.verdict == "slower" for change in counted)
    print(f"{len(changes)} rows, {slower} slower by more than {options.limit:g}x, {len(counted) - slower} lost")
    return 1 if counted else 0


if __name__ == "__main__":
    sys.exit(main())
