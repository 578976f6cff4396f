"""A small project with checks of its own, run in processes of its own: how the plugin's tests see the plugin."""

import json
from pathlib import Path

import pytest

from harness.report import Report

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
hard_gate = false
category = "none"
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

CONFTEST = """
from pathlib import Path

pytest_plugins = ["harness.plugin"]
HERE = Path(__file__).parent

def pytest_groundthink_tables(config):
    return HERE / "checks.toml", HERE / "thresholds.toml"

def pytest_groundthink_validate(settings):
    from harness.errors import HarnessError
    if settings.model not in ("GF-MH", "RWKV6", "HY"):
        raise HarnessError(f"--model {settings.model}: no such model")

def pytest_groundthink_describe_subject(settings):
    from harness.plugin.settings import Subject
    branches = ("rwkv",) if settings.model == "RWKV6" else ("rwkv", "mamba")
    return Subject(settings.model, branches, parameters=3_500_000, corpus="sotu", embedded_corpus=True)
"""


def check_row(check_id: str, **fields: object) -> str:
    """One row of a table of checks."""
    row = {"needs": [], "scales": ["3.5M", "8M"], "branches": "any", "known_answers": []}
    row |= {"suite": "gates", "file": check_id.lower()}
    return CHECKS.format(id=check_id, **{**row, **fields})


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
        """Replace the table of checks."""
        (self.pytester.path / "checks.toml").write_text("".join(rows))

    def suite(self, **files: str) -> None:
        """Write test files: ``suite(test_a1="...")``."""
        directory = self.pytester.path / "suites" / "gates"
        directory.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            header = "import os, time, pytest\ncheck = pytest.mark.check\n"
            (directory / f"{name}.py").write_text(header + body)

    def run(self, *arguments: str) -> pytest.RunResult:
        """``pytest suites --device cpu --report out ...`` in a process of its own."""
        return self.pytester.runpytest_subprocess(
            "suites", "--device", "cpu", "--report", str(self.report_dir), "-p", "no:cacheprovider", *arguments
        )

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
