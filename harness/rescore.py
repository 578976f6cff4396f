"""``python -m harness.rescore DIR``: judge a saved report again from its numbers, without running anything.

Exit 0 when every status follows from value, interval and the limits in the report's own directory; 1 when one does
not; 4 when DIR holds no report.
"""

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from harness.errors import HarnessError
from harness.records import Record, Status, worst
from harness.report import REPORT_FILE, THRESHOLDS_FILE, Report, decide
from harness.thresholds import Thresholds, explain_validation, judge_value, load_thresholds
from harness.wording import label

EXIT_AGREES, EXIT_DISAGREES, EXIT_USAGE = 0, 1, 4


def rescore(directory: Path) -> list[str]:
    """What does not follow, one sentence each; empty when the report holds. Raises HarnessError without a report."""
    report, thresholds = _read(directory)
    faults = []
    if report.provenance.get("thresholds_sha256") != thresholds.sha256:
        faults.append(f"{THRESHOLDS_FILE} is not the file whose hash the report recorded")
    rescored = {index: _status(record, thresholds) for index, record in enumerate(report.records)}
    for index, record in enumerate(report.records):
        if (
            record.value is not None
            and not record.info
            and record.threshold is None
            and _has_limits(record, thresholds)
        ):
            faults.append(f"{record.check} {label(record)}: has limits in {THRESHOLDS_FILE} and records none")
        if rescored[index] != record.status:
            faults.append(f"{record.check} {label(record)}: recorded {record.status}, follows {rescored[index]}")
    for result in report.checks:
        own = [rescored[i] for i, record in enumerate(report.records) if record.check == result.id and not record.info]
        if worst(own) != result.status:
            faults.append(f"{result.id}: recorded {result.status}, its records give {worst(own)}")
    listed = {result.id for result in report.checks}
    absent = sorted({record.check for record in report.records} - listed)
    faults += [f"{check}: has records and is not listed among the checks" for check in absent]
    outcome, exit_code = decide([result.status for result in report.checks], report)
    if (outcome, exit_code) != (report.outcome, report.exit_code):
        faults.append(
            f"recorded outcome {report.outcome} (exit {report.exit_code}), its checks give {outcome} (exit {exit_code})"
        )
    return faults


def _read(directory: Path) -> tuple[Report, Thresholds]:
    try:
        text = (directory / REPORT_FILE).read_text(encoding="utf-8")
        return Report.model_validate_json(text), load_thresholds(directory / THRESHOLDS_FILE)
    except OSError as error:
        raise HarnessError(f"{error.filename}: {error.strerror}; give a directory that --report wrote") from error
    except ValidationError as error:
        raise HarnessError(f"{directory / REPORT_FILE} is no report:\n{explain_validation(error)}") from error


def _has_limits(record: Record, thresholds: Thresholds) -> bool:
    return record.metric in thresholds.of(record.check)


def _status(record: Record, thresholds: Thresholds) -> Status:
    """The status that follows from a record's numbers. Exact claims and non-verdicts stand as they were made."""
    if record.info or record.threshold is None or record.value is None:
        return record.status
    return judge_value(thresholds.find(record.check, record.metric).at(record.scale), record.value, record.ci)


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.rescore", description="judge a saved report again")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that --report wrote")
    directory = parser.parse_args(arguments).directory
    try:
        faults = rescore(directory)
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    sys.stdout.write("\n".join(faults or ["every status follows from its numbers and limits"]) + "\n")
    return EXIT_DISAGREES if faults else EXIT_AGREES


if __name__ == "__main__":
    sys.exit(main())
