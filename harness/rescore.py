"""``python -m harness.rescore DIR``: judge a saved report again from its numbers, without running anything.

Exit 0 when every status, score and verdict follows from the numbers and the tables in the report's own directory; 1
when something does not; 4 when DIR holds no report that this program can read.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from harness.audit import contradiction, repeated
from harness.errors import HarnessError
from harness.graduation.ledger import broken
from harness.graduation.matrix import decide_graduation
from harness.items import read_items
from harness.records import worst
from harness.report import REPORT_FILE, SCHEMA_VERSION, Report, decide, graduate
from harness.tables import TablePaths, Tables, load_tables
from harness.thresholds import explain_validation

EXIT_AGREES, EXIT_DISAGREES, EXIT_USAGE = 0, 1, 4


def rescore(directory: Path) -> list[str]:
    """What does not follow, one sentence each; empty when the report holds. Raises HarnessError without a report."""
    report, tables = read_report(directory), _tables(directory)
    faults = []
    if report.digest() != report.content_sha256:
        faults.append(f"{REPORT_FILE} was changed after it was written: its content no longer has the hash it records")
    for name, sha256 in tables.hashes.items():
        if report.provenance.get(name) != sha256:
            table = name.removesuffix("_sha256")
            faults.append(f"{table}.toml is not the file whose hash the report recorded")
    try:
        read_items(directory, report.items_sha256)
    except HarnessError as error:
        faults.append(str(error))
    faults += [fault for record in report.records if (fault := contradiction(record, tables.thresholds))]
    faults += _ledger(report)
    faults += _statuses(report)
    return [*faults, *(_graduation(report, tables) if report.kind == "graduation" else _suite(report))]


def read_report(directory: Path) -> Report:
    """The report of a directory. Raises HarnessError that says what is wrong with it."""
    path = directory / REPORT_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            known = f"this program reads {SCHEMA_VERSION}"
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            todo = "install the version that wrote it" if newer else "make the report again with this version"
            raise HarnessError(f"{path} has schema version {version}; {known}: {todo}")
        return Report.model_validate(raw)
    except OSError as error:
        raise HarnessError(f"{path}: {error.strerror}; give a directory that --report wrote") from error
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path} is no text: {error}") from error
    except json.JSONDecodeError as error:
        raise HarnessError(f"{path} is no JSON: {error}") from error
    except ValidationError as error:
        raise HarnessError(f"{path} is no report:\n{explain_validation(error)}") from error


def _tables(directory: Path) -> Tables:
    try:
        return load_tables(TablePaths.beside(directory))
    except OSError as error:
        raise HarnessError(f"{error.filename}: {error.strerror}; the tables in force belong to a report") from error


def _ledger(report: Report) -> Iterator[str]:
    by_nodeid = {nodeid: [r for r in report.records if r.nodeid == nodeid] for nodeid in report.planned}
    for given in report.seals:
        fault = broken(given, by_nodeid.get(given.nodeid, []))
        if fault is not None:
            yield fault
    twice = repeated(report.records)
    if twice is not None:
        yield twice
    strays = sorted({record.nodeid for record in report.records} - set(report.planned))
    yield from (f"{nodeid or 'a record without an item'} was not planned" for nodeid in strays)


def _statuses(report: Report) -> Iterator[str]:
    for result in report.checks:
        own = [record for record in report.records if record.check == result.id and not record.info]
        follows = worst(record.status for record in own)
        if follows != result.status:
            yield f"{result.id}: recorded {result.status}, its records give {follows}"
    listed = {result.id for result in report.checks}
    for check in sorted({record.check for record in report.records} - listed):
        yield f"{check}: has records and is not listed among the checks"


def _suite(report: Report) -> Iterator[str]:
    outcome, exit_code = decide([result.status for result in report.checks], report)
    if (outcome, exit_code) != (report.outcome, report.exit_code):
        yield f"recorded {report.outcome} (exit {report.exit_code}), its checks give {outcome} (exit {exit_code})"


def _graduation(report: Report, tables: Tables) -> Iterator[str]:
    try:
        made = date.fromisoformat(str(report.provenance.get("date", ""))[:10])
    except ValueError:
        yield "its provenance does not say when it was made, so its waivers cannot be held against a date"
        made = date.max
    for waiver in report.waivers:
        if waiver.expires < made:
            yield f"the waiver of {waiver.check} had expired on {waiver.expires}, before the report was made"
    decision = decide_graduation(report.bundle(), tables.evidence, tables.checks, tables.thresholds)
    again = graduate(report, decision, tables)
    for name in ("verdict", "exit_code", "total", "total_range", "reasons", "categories", "hard_gates", "settled"):
        recorded, follows = getattr(report, name), getattr(again, name)
        if recorded != follows:
            yield f"recorded {name} {_brief(recorded)}, follows {_brief(follows)}"


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.rescore", description="judge a saved report again")
    parser.add_argument("directory", type=Path, help="what --report wrote")
    directory = parser.parse_args(arguments).directory
    try:
        faults = rescore(directory)
        headline = read_report(directory).headline
    except HarnessError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    sys.stdout.write(f"{headline}\n" if not faults else f"{len(faults)} statements do not follow: {headline}\n")
    return EXIT_DISAGREES if faults else EXIT_AGREES


if __name__ == "__main__":
    raise SystemExit(main())
