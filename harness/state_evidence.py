"""The records behind the statefulness page: looked up by what they measured, said in words, or named as missing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

from harness.ranking import badness
from harness.records import SEVERITY, Record, Status, worst
from harness.wording import format_number, format_value

WITHOUT_NUMBER = {Status.MISSING, Status.INVALID, Status.UNSUPPORTED, Status.NA}
"""Statuses of records that tell why a check has no number."""

_ALONE = "prerequisite "

Records = Sequence[Record]
K = TypeVar("K")


@dataclass(frozen=True)
class Row:
    """One quantity in words.

    source  ``CHECK.metric``. status: of the worst record behind it, empty for one that is only shown
    missing why there is no value; empty where there is one
    """

    what: str
    value: str
    source: str
    status: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Grid:
    """Quantities over layers, or whatever the columns are; a cell is a Row without a name."""

    columns: list[str]
    rows: list[tuple[str, list[Row]]]


@dataclass
class Evidence:
    """All records of a report by check and metric."""

    records: Sequence[Record]
    _named: dict[tuple[str, str], list[Record]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for record in self.records:
            if record.metric and record.value is not None:
                self._named.setdefault((record.check, record.metric), []).append(record)

    def find(
        self, source: str, *, branch: str | None = None, case: str | None = None, layer: int | None = None
    ) -> list[Record]:
        """The records of ``CHECK.metric`` with a value, of one branch, case or layer where one is given."""
        check, _, metric = source.rpartition(".")
        return [
            record
            for record in self._named.get((check, metric), [])
            if (branch is None or record.branch == branch)
            and (case is None or record.case == case)
            and (layer is None or record.layer == layer)
        ]

    def why_not(self, source: str) -> str:
        """Why there is no number: what the check said of it, or that it was not run."""
        check = source.rpartition(".")[0]
        own = [record for record in self.records if record.check == check]
        if not own:
            return f"missing: {check} was not part of this run"
        silent = [record for record in own if record.value is None and record.status in WITHOUT_NUMBER]
        told = [record for record in sorted(silent, key=lambda r: SEVERITY.index(r.status)) if _reason(record)]
        if not told:
            return f"missing: {check} gave no such number"
        kind = {Status.NA: "not applicable", Status.INVALID: "invalid", Status.UNSUPPORTED: "not supported"}
        return f"{kind.get(told[0].status, 'missing')}: {check}, {_reason(told[0])}"

    def row(
        self,
        what: str,
        source: str,
        records: Sequence[Record] | None = None,
        words: Callable[[Records], str] | None = None,
    ) -> Row:
        """A quantity of one place in ``words``: by default its measurement or, of several seeds, mean and range."""
        found = self.find(source) if records is None else records
        if not found:
            return Row(what, "", source, missing=self.why_not(source))
        return Row(what, (words or say)(found), source, status_of(found))

    def grid(
        self,
        columns: Mapping[str, K],
        rows: Iterable[tuple[str, str, Callable[[K], Records]]],
        words: Callable[[Records], str],
    ) -> Grid:
        """One row for each ``(name, source, records by column)`` that has a number anywhere; columns: key by title."""
        filled = []
        for name, source, pick in rows:
            cells = [self.row("", source, pick(key), words) for key in columns.values()]
            if any(cell.value for cell in cells):
                filled.append((name, cells))
        return Grid(list(columns), filled)


def _reason(record: Record) -> str:
    """The note of a record, without what is said of every record of a partial run."""
    return "; ".join(part for part in record.note.split("; ") if not part.startswith(_ALONE))


def status_of(records: Iterable[Record]) -> str:
    """The worst status of those that are judged; empty when none is."""
    judged = [record.status for record in records if not record.info]
    return worst(judged).value if judged else ""


def by_seed(records: Iterable[Record]) -> list[Record]:
    """One record a seed: the worst, where a seed has several."""
    kept: dict[tuple[int, ...], Record] = {}
    for record in sorted(records, key=badness):
        kept.setdefault(record.seeds, record)
    return [kept[seeds] for seeds in sorted(kept)]


def mean(records: Records) -> float:
    """The mean over seeds."""
    return fmean(value for record in records if (value := record.value) is not None)


def say(records: Records, *, unit: bool = True) -> str:
    """A measurement of one seed with its interval; of several, the mean and the range over them."""
    seeds = by_seed(records)
    shown = seeds[0].unit if unit else ""
    if len(seeds) == 1:
        return format_value(seeds[0].value, shown, seeds[0].ci)
    values = [record.value for record in seeds if record.value is not None]
    reach = f"{format_number(min(values))} to {format_number(max(values))}"
    return f"{format_value(mean(seeds), shown, None)} (mean of {len(values)} seeds, {reach})"


def number(records: Records) -> str:
    """The value alone, of several seeds their mean: for a table whose row says the rest."""
    return format_number(mean(by_seed(records)))


def times(records: Records) -> str:
    """A ratio as ``108,583x``: three digits, and which is over which where the record says so; or why none."""
    value = mean(by_seed(records))
    if math.isnan(value):
        return "none: one of the two is exactly 0"
    rounded = f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else format_number(value)
    which = records[0].note.partition(",")[0]
    return f"{rounded}x{', ' + which if ' over ' in which else ''}"


def span(found: Records) -> str:
    """The least and the greatest value of some records, with their unit."""
    values = [record.value for record in found if record.value is not None]
    unit = f" {found[0].unit}" if found[0].unit not in ("", "1") else ""
    low, high = format_number(min(values)), format_number(max(values))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
