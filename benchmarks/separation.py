"""Which limits tell a healthy model from a broken one? The ROC of every limit, over reports that were saved.

    python -m benchmarks.separation DIR [--out FILE]

DIR holds reports, at any depth: of healthy models, and of mutants, as ``benchmarks.mutant_matrix`` leaves them in its
work directory. A limit's score of a report is the worst distance of its values from the pass band, negative outside.
Moving the limit along that score condemns more or fewer; the area under the curve (AUC) is the chance that a broken
model scores below a healthy one, ties counted half, with its 90 % interval: 1 where some limit separates all of them,
.5 where none helps.

Only mutants that were made for a check count as broken for its limits, and a mutant breaks one thing: of a check with
several limits it is enough that one of them tells it. So the table names the mutants that a limit tells from every
healthy model that was read, and the end of the page those that no limit of their check tells.

Exit code 0; 1 when a healthy model FAILs or a mutant that was read is told by no limit; 2 for a DIR without reports.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fixtures.mutants import CONTROLS, MUTANTS
from harness.errors import HarnessError
from harness.metrics.drift import area_under_roc
from harness.metrics.intervals import Interval
from harness.records import Record, Status
from harness.report import REPORT_FILE, Report
from harness.rescore import read_report
from harness.thresholds import margin

Limit = tuple[str, str]
"""Check and metric."""


@dataclass(frozen=True)
class Score:
    """What one report says of one limit: the worst distance to the pass band, its value, and whether it FAILs."""

    subject: str
    distance: float
    value: float
    fails: bool


@dataclass
class Separation:
    """The scores of one limit."""

    healthy: list[Score] = field(default_factory=list)
    broken: list[Score] = field(default_factory=list)

    @property
    def auc(self) -> Interval | None:
        """Chance that a broken model scores below a healthy one; None unless both were read."""
        if not self.healthy or not self.broken:
            return None
        return area_under_roc([s.distance for s in self.healthy], [s.distance for s in self.broken])

    @property
    def told(self) -> list[str]:
        """Broken models below every healthy one."""
        floor = min((score.distance for score in self.healthy), default=None)
        return [] if floor is None else [score.subject for score in self.broken if score.distance < floor]

    @property
    def verdict(self) -> str:
        """What the limit in force does with them."""
        condemned = [score.subject for score in self.healthy if score.fails]
        if condemned:
            return f"FAILs {', '.join(condemned)}"
        caught = sum(score.fails for score in self.broken)
        if not self.broken or not self.healthy:
            return "not tested"
        return f"FAILs {caught} of {len(self.broken)}"


def separations(reports: Iterable[Report]) -> dict[Limit, Separation]:
    """Every limit that a report judged by, in the order of first appearance."""
    found: dict[Limit, Separation] = defaultdict(Separation)
    for report in reports:
        name = report.model.removeprefix("mutant:").removeprefix("control:")
        made_for = MUTANTS[name].caught_by if report.model.startswith("mutant:") else None
        for limit, score in _scores(name, report.records).items():
            if made_for is None:
                found[limit].healthy.append(score)
            elif made_for == limit[0]:
                found[limit].broken.append(score)
    return dict(found)


def _scores(subject: str, records: Iterable[Record]) -> dict[Limit, Score]:
    worst: dict[Limit, Score] = {}
    for record in records:
        if record.info or record.threshold is None or record.value is None:
            continue
        distance = margin(record.threshold, record.value, None, record.direction)
        # a number that is none is as far from healthy as can be
        distance = float("-inf") if distance != distance else distance
        limit, fails = (record.check, record.metric), record.status is Status.FAIL
        before = worst.get(limit)
        if before is None or (distance, not fails) < (before.distance, not before.fails):
            worst[limit] = Score(subject, distance, record.value, fails)
    return worst


def untold(found: Mapping[Limit, Separation]) -> list[str]:
    """Mutants that were read and that no limit of their check tells from the healthy models."""
    read = {score.subject for limit in found.values() for score in limit.broken}
    told = {subject for limit in found.values() for subject in limit.told}
    return sorted(read - told)


def page(found: Mapping[Limit, Separation]) -> str:
    """The table as Markdown, limits without a mutant last."""
    lines = ["| limit | AUC | healthy: worst, best | broken: worst, best | told from all healthy | limit in force |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for (check, metric), limit in sorted(found.items(), key=lambda item: not item[1].broken):
        auc = "–" if limit.auc is None else f"{limit.auc.value:.2f} [{limit.auc.low:.2f}, {limit.auc.high:.2f}]"
        cells = (f"`{check}.{metric}`", auc, _ends(limit.healthy), _ends(limit.broken), ", ".join(limit.told) or "–")
        lines.append("| " + " | ".join((*cells, limit.verdict)) + " |")
    left = untold(found)
    end = f"Told by no limit of their check: {', '.join(left)}." if left else "Every mutant is told by a limit."
    return "\n".join((*lines, "", end, ""))


def _ends(scores: Sequence[Score]) -> str:
    if not scores:
        return "–"
    ordered = sorted(scores, key=lambda score: score.distance)
    ends = [ordered[0], ordered[-1]] if len(ordered) > 1 else ordered
    return f"n = {len(scores)}: " + ", ".join(f"{score.value:.3g} ({score.subject})" for score in ends)


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page there instead of printing it")
    options = parser.parse_args(argv)
    try:
        reports = [read_report(path.parent) for path in sorted(options.directory.rglob(REPORT_FILE))]
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not reports:
        sys.stderr.write(f"{options.directory}: no {REPORT_FILE} below it; run benchmarks.mutant_matrix first\n")
        return 2
    unknown = {r.model for r in reports if r.model.partition(":")[0] in ("mutant", "control")} - {
        *(f"mutant:{name}" for name in MUTANTS),
        *(f"control:{name}" for name in CONTROLS),
    }
    if unknown:
        sys.stderr.write(
            f"{', '.join(sorted(unknown))}: no longer exists; remove its reports from {options.directory}\n"
        )
        return 2
    found = separations(reports)
    text = page(found)
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf8")
    condemned = any(score.fails for limit in found.values() for score in limit.healthy)
    return 1 if condemned or untold(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
