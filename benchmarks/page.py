"""Puts the times of a run into docs/performance.md.

    python -m benchmarks.page FILE [FILE ...]

Each FILE is one that --json wrote on a GPU. Its tables replace those between the marks of its sections, and nothing
else of the page changes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import kernels, step
from benchmarks.record import Line, Record, RecordError, read

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


class PageError(ValueError):
    """A record does not belong on the page, or the page lacks the marks of its section. The message says which."""


def sections(record: Record) -> dict[str, str]:
    """The text of each section that a record has times for, by name. Raises ``PageError`` for one of a CPU."""
    if record.provenance["gpu"] is None:
        raise PageError(f"the page shows times of a GPU; this run was on {record.device}")
    if record.benchmark == "kernels":
        calls = "".join(f"- {line}\n" for line in kernels.first_calls(record.rows))
        text = _section(record, kernels.CUDA_HEADINGS, kernels.cuda_lines(record.rows))
        return {"kernels": f"{text}\n{calls}" if calls else text}
    made = (("step", step.STEP_HEADINGS, step.step_lines), ("start", step.START_HEADINGS, step.start_lines))
    return {
        name: _section(record, headings, lines(record.rows)) for name, headings, lines in made if lines(record.rows)
    }


def _section(record: Record, headings: Sequence[str], lines: Sequence[Line]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return f"`{record.command}`\n\n{record.machine()}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def put(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of a section. Raises ``PageError`` where they are not."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise PageError(f"the page has no place for {name}: it lacks {begin.strip()} or {end}")
    return before + begin + text + end + after


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--page", type=Path, default=PAGE, help="default docs/performance.md")
    options = parser.parse_args(arguments)
    page = options.page.read_text(encoding="utf8")
    try:
        for file in options.files:
            for name, text in sections(read(file)).items():
                page = put(page, name, text)
    except (RecordError, PageError) as error:
        print(error, file=sys.stderr)
        return 2
    options.page.write_text(page, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
