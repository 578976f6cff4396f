"""Figures drawn side by side: one keeps a core busy for .1 to 3 seconds, and a report has dozens of them.

``python -m harness.drawing`` is one of the processes. Standard input has its figures as JSON, by path; standard output
gets, by path, why a figure could not be drawn: nothing where it was.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.figures import FigureError, TextFigure, draw_figure, figure_from_json

COMMAND = (sys.executable, "-m", "harness.drawing")

FIGURES_A_PROCESS = 4
"""At least: loading matplotlib takes as long as drawing about four."""

ROOT = Path(__file__).parents[1]


def draw_all(figures: Mapping[Path, str]) -> dict[Path, str]:
    """Write figures, given as JSON by path, as PNG; by path, why one could not be drawn, empty where it was."""
    processes = min(os.cpu_count() or 1, len(figures) // FIGURES_A_PROCESS)
    if processes < 2:
        return _draw(figures)
    given = list(figures.items())
    # in turns, since the figures of one kind stand side by side and take equally long
    shares = [dict(given[first::processes]) for first in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        drawn = list(pool.map(_draw_elsewhere, shares))
    # a process may have been killed for want of memory. One after the other: matplotlib knows no threads
    found = [_draw(share) if remarks is None else remarks for share, remarks in zip(shares, drawn, strict=True)]
    return {path: remark for remarks in found for path, remark in remarks.items()}


def _draw_elsewhere(figures: Mapping[Path, str]) -> dict[Path, str] | None:
    """Draw in a process of its own; None where that failed."""
    importable = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    try:
        done = subprocess.run(  # noqa: S603 (our own module)
            COMMAND,
            input=json.dumps({str(path): figure for path, figure in figures.items()}),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": importable},
        )
        return {Path(path): remark for path, remark in json.loads(done.stdout).items()}
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _draw(figures: Mapping[Path, str]) -> dict[Path, str]:
    remarks = {}
    for path, text in figures.items():
        figure = figure_from_json(text)
        assert not isinstance(figure, TextFigure)
        try:
            draw_figure(figure, path)
            remarks[path] = ""
        except FigureError as error:
            remarks[path] = str(error)
    return remarks


if __name__ == "__main__":
    asked = {Path(path): figure for path, figure in json.load(sys.stdin).items()}
    json.dump({str(path): remark for path, remark in _draw(asked).items()}, sys.stdout)
