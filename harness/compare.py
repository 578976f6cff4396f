"""``python -m harness.compare DIR_A DIR_B [--markdown]``: what changed from one report to another.

Numbers that both reports hold by document are compared in pairs; all others by their intervals, as two independent
runs. Exit 0 when nothing got worse beyond noise, 1 when something did, 4 for reports that cannot be compared.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.comparison import Comparison, Metrics, Tendency, compare
from harness.comparison_text import as_text
from harness.errors import HarnessError
from harness.items import read_items
from harness.pairing import Pairing, pair
from harness.records import BLOCKING, SEVERITY, Status
from harness.report import REPORT_FILE, Report
from harness.rescore import read_report
from harness.tables import TABLE_FILES

EXIT_NO_WORSE, EXIT_WORSE, EXIT_USAGE = 0, 1, 4


@dataclass(frozen=True)
class StatusChange:
    """A check that ended otherwise.

    tendency  worse where it FAILs or gives no evidence and did not before; from PASS to WARN is what noise can do
    """

    check: str
    before: str
    after: str
    tendency: Tendency


@dataclass(frozen=True)
class Differences:
    """Everything that changed from the first report to the second.

    differs   what else is not the same, each as (what, first, second): the model, its data, the program
    scores    verdict, total and scores that differ, each as (what, first, second)
    unpaired  numbers without items, held against each other by their intervals
    """

    reports: tuple[Report, Report]
    differs: Sequence[tuple[str, str, str]]
    pairing: Pairing
    statuses: Sequence[StatusChange]
    scores: Sequence[tuple[str, str, str]]
    unpaired: Comparison

    @property
    def worse(self) -> list[str]:
        """What got worse beyond noise."""
        before, after = (report.verdict for report in self.reports)
        found = [f"verdict {before} -> {after}"] if before and after and after.rank < before.rank else []
        found += [f"{each.check} {each.before} -> {each.after}" for each in self.statuses if each.tendency == "worse"]
        found += [change.what for change in self.pairing.changes if change.tendency == "worse"]
        return found + [each.now.where for each in self.unpaired.those("changed") if each.tendency == "worse"]


def compare_reports(first: Path, second: Path) -> Differences:
    """Hold two saved reports against each other. Raises HarnessError for those that say nothing about each other."""
    reports = _read(first), _read(second)
    scales = [str(report.scale["from"]) for report in reports]
    if scales[0] != scales[1]:
        raise HarnessError(
            f"{first} is at {scales[0]} and {second} at {scales[1]}: numbers of two sizes are no change; "
            "give two reports of one scale"
        )
    pairing = pair(
        *(read_items(path, report.items_sha256) for path, report in zip((first, second), reports, strict=True))
    )
    before, after = (_without_paired(report.metrics, pairing) for report in reports)
    return Differences(
        reports=reports,
        differs=list(_differs(*reports)),
        pairing=pairing,
        statuses=list(_status_changes(*reports)),
        scores=list(_score_changes(*reports)),
        unpaired=compare(after, before, str(first)),
    )


def _read(directory: Path) -> Report:
    report = read_report(directory)
    if report.digest() != report.content_sha256:
        raise HarnessError(
            f"{directory / REPORT_FILE} was changed after it was written: its content has another hash than "
            f"it records; python -m harness.rescore {directory} says what does not follow"
        )
    return report


def _without_paired(metrics: Metrics, pairing: Pairing) -> Metrics:
    paired = {(change.check, change.metric, (seed,)) for change in pairing.changes for seed in change.seeds}
    kept = [metric for metric in metrics.metrics if (metric.check, metric.metric, metric.seeds) not in paired]
    return metrics.model_copy(update={"metrics": kept})


def _differs(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    """What is not the same in two reports, before any number."""
    sides = [_described(report) for report in (first, second)]
    for what in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (side.get(what, "") for side in sides)
        if before != after:
            yield what, before, after


def _described(report: Report) -> dict[str, str]:
    def common(name: str) -> str:
        return ", ".join(sorted({str(getattr(record, name))[:12] for record in report.records} - {""}))

    described = {
        "outcome": str(report.outcome),
        "model": report.model,
        "parameters": str(report.parameters),
        "corpus": report.corpus,
        "text": common("corpus_sha256"),
        "tokenizer": common("tokenizer_sha256"),
        "configuration": common("config_sha256"),
        "device": report.device,
        "seeds": ", ".join(map(str, report.seeds)),
        "commit": str(report.provenance.get("git", {}).get("sha", ""))[:12],
        "uncommitted changes": "yes" if report.provenance.get("git", {}).get("dirty") else "no",
        "waivers": ", ".join(waiver.check for waiver in report.waivers),
    }
    for table in TABLE_FILES:
        described[table] = str(report.provenance.get(f"{table.removesuffix('.toml')}_sha256", ""))[:12]
    return described | {f"--set {key}": value for key, value in sorted(report.overrides.items())}


def _ends(report: Report) -> Mapping[str, tuple[Status, str]]:
    """How each check ended, and in words; a waived FAIL is a FAIL here."""
    if report.kind == "suite":
        return {each.id: (each.status, each.status.value) for each in report.checks}
    return {
        each.check: (Status.FAIL, "FAIL, waived") if each.waived else (each.status, each.status.value)
        for each in report.settled
    }


def _status_changes(first: Report, second: Report) -> Iterator[StatusChange]:
    before, after = _ends(first), _ends(second)
    for check in dict.fromkeys((*before, *after)):
        if check not in before or check not in after:
            words = [side[check][1] if check in side else "not run" for side in (before, after)]
            yield StatusChange(check, words[0], words[1], tendency="")
        elif before[check] != after[check]:
            yield StatusChange(check, before[check][1], after[check][1], _tendency(before[check][0], after[check][0]))


def _tendency(before: Status, after: Status) -> Tendency:
    """For the worse only where a FAIL or a loss of evidence is new: PASS and WARN may differ by noise."""
    if after in BLOCKING:
        return "worse" if SEVERITY.index(after) < SEVERITY.index(before) else ""
    return "better" if before in BLOCKING and after in (Status.PASS, Status.WARN) else ""


def _score_changes(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    sides: list[dict[str, str]] = []
    for report in (first, second):
        low, high = report.total_range or (0.0, 0.0)
        total = "" if report.total_range is None else f"{low:g}" if low == high else f"{low:g} to {high:g}"
        scores: dict[str, str] = {
            name: "none" if score.score is None else str(score.score) for name, score in report.categories.items()
        }
        gates = {f"hard gate {gate.id}": gate.status.value for gate in report.hard_gates}
        sides.append({"verdict": report.verdict or "", "total": total, **scores, **gates})
    for what in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (side.get(what, "") for side in sides)
        if before != after:
            yield what, before, after


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.compare", description="what changed between two reports")
    parser.add_argument("first", type=Path, metavar="DIR_A", help="what --report wrote, before")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="what --report wrote, after")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    given = parser.parse_args(arguments)
    try:
        found = compare_reports(given.first, given.second)
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    sys.stdout.write(as_text(found, (str(given.first), str(given.second)), given.markdown))
    return EXIT_WORSE if found.worse else EXIT_NO_WORSE


if __name__ == "__main__":
    raise SystemExit(main())
