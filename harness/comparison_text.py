"""What changed between two reports, as plain text or as Markdown."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.comparison import Change
from harness.pairing import PairedChange
from harness.wording import format_number, format_value, markdown_cell

if TYPE_CHECKING:
    from harness.compare import Differences

Row = Sequence[str]


def as_text(found: "Differences", names: tuple[str, str], markdown: bool) -> str:
    """The whole comparison. names: what the reader calls the two reports."""
    return "\n".join(_lines(found, names, markdown)) + "\n"


def _lines(found: "Differences", names: tuple[str, str], markdown: bool) -> Iterator[str]:
    mark = "- " if markdown else ""
    for side, name, report in zip("AB", names, found.reports, strict=True):
        yield f"{mark}{side}  {name}: {report.headline}"
    yield f"{mark}{_verdict(found)}"
    if markdown:
        yield ""
    yield from _section(
        "What else differs",
        ("what", "A", "B"),
        found.differs,
        markdown,
        empty="nothing: the same model, data and program",
    )
    paired = [_paired(change) for change in found.pairing.changes]
    header = ("metric", "seeds", "B - A", "over seeds", "better : worse : equal items", "p", "")
    yield from _section(
        "Paired: B less A over the same items, 90 % intervals", header, paired, markdown, empty="nothing"
    )
    yield from (f"{mark}not paired: {text}" for text in found.pairing.refused)
    if any(len(change.seeds) == 1 for change in found.pairing.changes):
        yield f"{mark}one seed: a difference between these weights, not between two ways to train"
    yield from _section("Verdict and scores", ("what", "A", "B"), found.scores, markdown, empty="the same")
    statuses = [(each.check, each.before, each.after, each.tendency) for each in found.statuses]
    yield from _section("Checks", ("check", "A", "B", ""), statuses, markdown, empty="all ended the same")
    unpaired = [_unpaired(change) for change in found.unpaired.those("changed")]
    yield from _section(
        "Unpaired: all other numbers, as of two independent runs", ("metric", "A", "B", "by", "noises", ""), unpaired,
        markdown, empty="nothing beyond noise",
    )  # fmt: skip
    yield f"{mark}{found.unpaired.summary.replace('baseline', 'first').replace('only here', 'only in the second')}"


def _verdict(found: "Differences") -> str:
    worse = found.worse
    weights = " (the same weights)" if found.unpaired.same_weights else ""
    if not worse:
        return f"nothing got worse beyond noise{weights}"
    return f"worse beyond noise{weights}: {', '.join(worse)}"


def _paired(change: PairedChange) -> Row:
    by = change.difference
    size = format_value(by.value, change.unit, by.over_items.ci)
    trainings = format_value(by.over_seeds.value, "", by.over_seeds.ci) if len(change.seeds) > 1 else ""
    claim = (change.tendency or "changed") if change.changed else "within noise"
    return (
        change.what,
        ", ".join(map(str, change.seeds)),
        size,
        trainings,
        change.score,
        format_number(by.p_value),
        claim,
    )


def _unpaired(change: Change) -> Row:
    noises = "exact" if change.noise is None else f"{change.in_noises:.1f}"
    then, now = (format_number(side.value) for side in (change.then, change.now))
    return change.now.where, then, now, f"{change.delta:+.3g}", noises, change.tendency


def _section(title: str, header: Row, rows: Sequence[Row], markdown: bool, *, empty: str) -> Iterator[str]:
    if not markdown:
        yield ""
    if not rows:
        yield f"**{title}**: {empty}" if markdown else f"{title}: {empty}"
    elif markdown:
        yield from (f"**{title}**", "")
        yield from (
            f"| {' | '.join(markdown_cell(cell) for cell in row)} |" for row in (header, ["---"] * len(header), *rows)
        )
    else:
        yield title
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        for row in (header, *rows):
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if markdown:
        yield ""
