"""Where the time of a decision went: its checks, its trainings, and what a plan would have said of these.

    python -m benchmarks.stages REPORT STORE

REPORT is the directory of the report, STORE the one that held its trainings. Prints Markdown. A check's seconds hold
the wait for its trainings; its memory is the most that its own process had allocated on the GPU.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from fixtures.plan import known_pace, parameters_times_tokens
from fixtures.training import KIND
from harness.beginnings import read_origin
from harness.errors import HarnessError
from harness.execution import read_execution
from harness.plugin.lifecycle import GPU_PEAK
from harness.report import REPORT_FILE
from harness.runlog import read_beginning
from harness.store import read_entry

MIB = 2**20


@dataclass
class Stage:
    """The items of one suite file. seconds: by the clock; peak: bytes on the GPU, None where none was told."""

    name: str
    seconds: float = 0.0
    peak: int | None = None


@dataclass
class Trained:
    """Trainings that differ in their seed alone.

    predicted  seconds by the pace that is known of the GPU; None of another one
    gpu        seconds of their updates with the GPU to themselves; None where it was not measured
    wall       seconds from the start to the end of each, in which others may have run, too; one that began as a
               shorter one began with that
    """

    name: str
    seeds: list[int] = field(default_factory=list)
    steps: int = 0
    predicted: float | None = 0.0
    gpu: float | None = 0.0
    wall: list[float] = field(default_factory=list)


def stages(report: Path) -> list[Stage]:
    """What the files of the suites took, in the order in which they ran."""
    found: dict[str, Stage] = {}
    for case in ElementTree.parse(report / "junit.xml").iter("testcase"):
        name = case.attrib["classname"].removeprefix("suites.")
        stage = found.setdefault(name, Stage(name))
        stage.seconds += float(case.attrib["time"])
        peaks = [int(prop.attrib["value"]) for prop in case.iter("property") if prop.attrib["name"] == GPU_PEAK]
        stage.peak = max([*peaks, *([stage.peak] if stage.peak is not None else [])], default=None)
    return list(found.values())


def trainings(store: Path) -> list[Trained]:
    """What a store's trainings took, in the order in which they began."""
    found: dict[tuple[str, ...], Trained] = {}
    entries = [read_entry(path.parent) for path in (store / KIND).glob("*/manifest.json")]
    for entry in sorted(entries, key=lambda entry: read_beginning(entry.path)):
        fields, train = entry.fields, entry.fields["config"]["train"]
        subject = ", ".join(str(value) for value in fields["subject"].values())
        patch = "" if fields["patch"] == "none" else f", {fields['patch']}"
        name = f"{subject} {fields['scale']}, {train['steps']} steps{patch}"
        # what was kept of a shorter training was not trained again
        origin = read_origin(entry.path)
        shared = 0 if origin is None else origin.step
        row = found.setdefault((name, str(bool(shared))), Trained(name, steps=train["steps"] - shared))
        execution = read_execution(entry.path)
        pace = None if execution is None else known_pace(execution.gpu)
        work = parameters_times_tokens(fields["scale"], row.steps * train["batch_tokens"][fields["device"]])
        row.predicted = None if pace is None or row.predicted is None else row.predicted + work / pace
        ms = None if execution is None else execution.alone_ms
        row.gpu = None if ms is None or row.gpu is None else row.gpu + row.steps * ms / 1000
        row.seeds.append(fields["seed"])
        row.wall.append((entry.created - read_beginning(entry.path)).total_seconds())
    return list(found.values())


def lines(report: Path, store: Path) -> list[str]:
    """The page, as Markdown."""
    told = json.loads((report / REPORT_FILE).read_text(encoding="utf8"))
    rows = trainings(store)
    return [
        f"`{told['command']}`: {told['headline']}",
        "",
        f"{told['provenance']['wall_s']:.0f} s in all, the report not yet written",
        "",
        *_table(
            ("suite", "seconds", "GPU memory of the session, MiB"),
            ((s.name, f"{s.seconds:.1f}", "" if s.peak is None else f"{s.peak / MIB:.0f}") for s in stages(report)),
        ),
        "",
        *_table(
            ("trainings", "seeds", "updates each", "predicted, s", "updates alone, s", "from start to end, s"),
            (
                (r.name, ", ".join(map(str, r.seeds)), str(r.steps), _seconds(r.predicted), _seconds(r.gpu),
                 ", ".join(f"{wall:.0f}" for wall in r.wall))
                for r in rows
            ),
        ),
        *_total(rows),
    ]  # fmt: skip


def _total(rows: Sequence[Trained]) -> list[str]:
    columns: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        columns["predicted"].append(row.predicted)
        columns["gpu"].append(row.gpu)
    sums = {name: None if None in found else sum(filter(None, found)) for name, found in columns.items()}
    return [f"| all | | | {_seconds(sums.get('predicted'))} | {_seconds(sums.get('gpu'))} | |"]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="REPORT")
    parser.add_argument("store", type=Path, metavar="STORE")
    options = parser.parse_args(arguments)
    for path in (options.report / REPORT_FILE, options.report / "junit.xml", options.store / KIND):
        if not path.exists():
            sys.stderr.write(f"{path} is not there: give the directory of a report, and the store of its run\n")
            return 2
    try:
        print("\n".join(lines(options.report, options.store)))
    except (HarnessError, ElementTree.ParseError, ValueError, KeyError) as error:
        sys.stderr.write(f"{options.report} and {options.store} cannot be read together: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
