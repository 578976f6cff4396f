"""What GitHub Actions shows of a run: the decision on the page of the job, and annotations where checks went wrong.

Both are in the public form of workflow commands ("Workflow commands for GitHub Actions", docs.github.com). Nothing here
decides anything, and nothing happens outside of GitHub Actions.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.check_rows import CheckRow, check_rows
from harness.records import Status
from harness.report import DECISION_FILES, Report
from harness.tables import Tables
from harness.wording import format_band, format_measurement, label

# GitHub drops a summary of more than 1,024 KiB a step, all of it
SUMMARY_BYTES = 900_000
# and shows ten annotations of a kind a step
MOST_ANNOTATIONS = 10

MARKDOWN = DECISION_FILES[1]

LEVELS: Mapping[Status, str] = {
    Status.FAIL: "error",
    Status.INVALID: "error",
    Status.MISSING: "error",
    Status.WARN: "warning",
}


def tell(environment: Mapping[str, str], report: Report, tables: Tables, directory: Path, root: Path) -> list[str]:
    """Append the decision in ``directory`` to the summary of the job; gives the lines to print. Nothing elsewhere.

    environment is that of the process, root the directory that node ids start at.
    """
    if not runs_there(environment):
        return []
    trouble = summarise(environment, (directory / MARKDOWN).read_text(encoding="utf-8"))
    return [*annotations(report, tables, root), *([trouble] if trouble else [])]


def summarise(environment: Mapping[str, str], markdown: str) -> str:
    """Append a text to the summary of the job; gives an annotation if that could not be done, else nothing."""
    path = environment.get("GITHUB_STEP_SUMMARY", "")
    if not runs_there(environment) or not path:
        return ""
    summary = Path(path)
    try:
        present = summary.stat().st_size if summary.exists() else 0
        with summary.open("a", encoding="utf-8") as handle:
            handle.write(shortened(without_images(markdown), SUMMARY_BYTES - present))
    except OSError as error:
        return command("warning", f"the summary of the job could not be written: {error}", title="groundthink")
    return ""


def runs_there(environment: Mapping[str, str]) -> bool:
    """Whether this process runs in GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def annotations(report: Report, tables: Tables, root: Path) -> list[str]:
    """At most ten workflow commands, one a check, worst first; root is where node ids start."""
    wrong = [row for row in check_rows(report, tables) if row.status in LEVELS]
    shown = wrong if len(wrong) <= MOST_ANNOTATIONS else wrong[: MOST_ANNOTATIONS - 1]
    commands = [_annotation(row, report, root) for row in shown]
    rest = wrong[len(shown) :]
    if rest:
        names = ", ".join(f"{row.id} {row.status}" for row in rest)
        commands.append(command(LEVELS[rest[0].status], names, title=f"and {len(rest)} checks more"))
    return commands


def _annotation(row: CheckRow, report: Report, root: Path) -> str:
    nodeids = [row.ran.worst.nodeid] if row.ran and row.ran.worst else []
    nodeids += [nodeid for nodeid, check in report.planned.items() if check == row.id]
    nodeid = next(filter(None, nodeids), "")
    line = line_of(nodeid, root)
    return command(
        LEVELS[row.status],
        "\n".join(_sentences(row)),
        file=nodeid.partition("::")[0],
        line=str(line) if line else "",
        title=f"{row.id} {row.status}: {row.title}",
    )


def _sentences(row: CheckRow) -> Iterator[str]:
    """What was measured, what was asked, and what to do."""
    worst = row.ran.worst if row.ran else None
    if row.remark:
        yield row.remark
    elif worst is None:
        yield "no record: it was planned, and nothing was measured"
    if worst is not None and worst.value is not None:
        limits = f", pass {format_band(worst.threshold.pass_band)}" if worst.threshold else ""
        yield f"{label(worst)} {format_measurement(worst)}{limits}"
    elif worst is not None and not row.remark:
        yield ": ".join(filter(None, (label(worst), worst.note)))
    if row.ran:
        yield f"next: {row.ran.next}"
        yield f"again: {row.ran.rerun}"


def line_of(nodeid: str, root: Path) -> int | None:
    """The line on which the test of a node id is defined, from 1; None where that cannot be found."""
    file, _, test = nodeid.partition("::")
    name = test.partition("[")[0].rpartition("::")[2]
    if not name or not (root / file).is_file():
        return None
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    definition = re.compile(rf"\s*(async )?def {re.escape(name)}\(")
    return next((number for number, line in enumerate(lines, start=1) if definition.match(line)), None)


def command(level: str, message: str, *, title: str, file: str = "", line: str = "") -> str:
    """One workflow command: ``::error file=a.py,line=3,title=G1 FAIL::message``; empty properties are left out."""
    given = {"file": file, "line": line, "title": title}
    properties = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in given.items() if value)
    return f"::{level} {properties}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    """Percent, line breaks and ``more`` as %XX. Percent comes first, or it would escape the escapes."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def without_images(markdown: str) -> str:
    """Lines that are an image left out: its file is not where the summary is shown."""
    return "".join(line for line in markdown.splitlines(keepends=True) if not line.startswith("!["))


def shortened(text: str, most_bytes: int) -> str:
    """The text, cut after a whole line where it is longer than so many bytes in UTF-8, with a note that it was."""
    if len(text.encode()) <= most_bytes:
        return text
    note = "\n\nCut here: the whole text is longer than may be shown. It is in the report, decision.md.\n"
    room = most_bytes - len(note.encode())
    if room < 0:
        return ""
    kept = text.encode()[:room]
    return kept[: kept.rfind(b"\n") + 1].decode() + note
