"""A small project with checks of its own, run in processes of its own: how the plugin's tests see the plugin."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.report import Report
from harness.tables import TablePaths, Tables, load_tables

ROOT = Path(__file__).parents[2]

CHECKS = """
[{id}]
title = "title of {id}"
claim = "claim of {id}"
why = "why of {id}"
method = "method of {id}"
needs = {needs}
suite = "{suite}"
file = "test_{file}.py"
scales = {scales}
category = "{category}"
alone = {alone}
study = {study}
branches = "{branches}"
known_answers = {known_answers}
next = "what to do about {id}"
source = "source of {id}"
"""

LIMITS = """
[A1.ratio]
unit = "1"
direction = "band"
pass = [0.3, 3.0]
warn = [0.1, 10.0]
source = "a source"
calibrated = false
[B1.ratio]
unit = "nat"
direction = "higher"
pass = [1.0, inf]
warn = [0.5, inf]
source = "a source"
calibrated = true
"""

EVIDENCE = """
may_set = ["train.lr"]
gates = [{gates}]
{scales}
[pending]
P1 = {{ category = "none", title = "title of P1" }}
[matrix]
go = 10.0
caution = 8.0
one_seed_cap = 2
weights = {{ stability = 1.5, canary = 1.5, scaling = 1.0, resource = 1.0 }}
[rungs]
{rungs}
"""

GATE = '{{ id = "H6", title = "title of H6", checks = ["{check}"], scales = ["3.5M", "8M", "30M", "125M"] }}'

CONFTEST = """
from pathlib import Path

pytest_plugins = ["harness.plugin"]
HERE = Path(__file__).parent

def pytest_groundthink_tables(config):
    from harness.tables import TablePaths
    return TablePaths(HERE / "checks.toml", HERE / "thresholds.toml", HERE / "evidence.toml")

def pytest_groundthink_validate(settings):
    from harness.errors import HarnessError
    if settings.model not in ("GF-MH", "RWKV6", "HY"):
        raise HarnessError(f"--model {settings.model}: no such model")

def pytest_groundthink_describe_subject(settings):
    from harness.plugin.settings import Subject
    branches = ("rwkv",) if settings.model == "RWKV6" else ("rwkv", "mamba")
    return Subject(settings.model, branches, parameters=3_500_000, corpus="sotu", embedded_corpus=True)
"""


def write_tables(directory: Path, *rows: str, limits: str = "", gate: str = "") -> Tables:
    """Tables of these checks in a directory, read back."""
    (directory / "checks.toml").write_text("".join(rows))
    (directory / "thresholds.toml").write_text(limits)
    (directory / "evidence.toml").write_text(evidence_table(*rows, gate=gate))
    return load_tables(TablePaths.beside(directory))


def check_row(check_id: str, **fields: object) -> str:
    """One row of a table of checks."""
    row = {"needs": [], "scales": ["3.5M", "8M"], "branches": "any", "known_answers": []}
    row |= {"suite": "gates", "file": check_id.lower(), "category": "none", "alone": "false", "study": "false"}
    return CHECKS.format(id=check_id, **{**row, **fields})


def evidence_table(*rows: str, gate: str = "") -> str:
    """A table of evidence for some checks: a scale demands all that run at it and are no studies, or P1, which nothing
    measures.

    Each score stands on the first check that feeds it: 2 where it ended WARN, 3 where it PASSes. gate: a check that is
    a hard gate.
    """
    checks = tomllib.loads("".join(rows))
    scales = ""
    for scale, following in {"3.5M": "8M", "8M": "30M", "30M": "125M", "125M": ""}.items():
        demands = [check for check, row in checks.items() if scale in row["scales"] and not row["study"]] or ["P1"]
        seeds = 1 if scale == "125M" else 3
        row = {"next": following, "seeds": seeds, "cpu_ref": True, "demands": demands}
        scales += f'[scales."{scale}"]\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in row.items())
    rungs = ""
    for category in ("stability", "canary", "scaling", "resource"):
        check = next((check for check, row in checks.items() if row["category"] == category), "P1")
        steps = [
            f'{{ says = "s", requires = [{{ check = "{check}", status = "{s}" }}] }}' for s in ("WARN", "WARN", "PASS")
        ]
        rungs += f"{category} = [{', '.join(steps)}]\n"
    return EVIDENCE.format(scales=scales, gates=GATE.format(check=gate) if gate else "", rungs=rungs)


class Project:
    """Test files under ``suites/gates`` and what came of running them."""

    def __init__(self, pytester: pytest.Pytester):
        self.pytester = pytester
        self.report_dir = pytester.path / "out"
        pytester.makeini("[pytest]\nfilterwarnings = error\nstrict_markers = true")
        pytester.makeconftest(CONFTEST)
        (pytester.path / "thresholds.toml").write_text(LIMITS)
        self.checks(check_row("A1"), check_row("B1", needs=["A1"]), check_row("H1", branches="hybrid"))

    def checks(self, *rows: str) -> None:
        """Replace the table of checks, and of what each scale demands: all of them."""
        (self.pytester.path / "checks.toml").write_text("".join(rows))
        (self.pytester.path / "evidence.toml").write_text(evidence_table(*rows))

    def suite(self, **files: str) -> None:
        """Write test files: ``suite(test_a1="...")``."""
        directory = self.pytester.path / "suites" / "gates"
        directory.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            header = "import os, time, pytest\ncheck = pytest.mark.check\n"
            (directory / f"{name}.py").write_text(header + body)

    def run(self, *arguments: str) -> pytest.RunResult:
        """``pytest suites --device cpu --report out ...`` in a process of its own."""
        return self._run("suites", arguments)

    def graduate(self, *arguments: str) -> pytest.RunResult:
        """``pytest --graduate ... --device cpu --report out`` in a process of its own."""
        return self._run("--graduate", arguments)

    def _run(self, first: str, arguments: Sequence[str]) -> pytest.RunResult:
        shared = ("--device", "cpu", "--report", str(self.report_dir), "-p", "no:cacheprovider")
        return self.pytester.runpytest_subprocess(*shared, first, *arguments)

    @property
    def report(self) -> Report:
        """The report of the last run."""
        return Report.model_validate_json((self.report_dir / "report.json").read_text())

    @property
    def statuses(self) -> dict[str, str]:
        """Status by check of the last run."""
        return {result.id: result.status.value for result in self.report.checks}

    @property
    def json(self) -> dict[str, object]:
        """report.json as any other program would read it."""
        return json.loads((self.report_dir / "report.json").read_text())
