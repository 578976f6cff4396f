"""Habits of the repository that a reviewer would otherwise have to remember."""

import ast
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checks import load_checks
from harness.thresholds import load_thresholds

ROOT = Path(__file__).parents[2]
SUITES = sorted((ROOT / "suites").rglob("test_*.py"))


def test_every_check_has_its_file_and_every_file_its_check():
    named = {ROOT / check.path for check in load_checks().values()}
    assert named == set(SUITES)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suites_hold_no_limits_of_their_own(path):
    """Limits live in thresholds.toml: a suite compares with 0 and 1 only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            numbers = [
                n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, int | float)
            ]
            assert set(numbers) <= {0, 1}, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_metric_that_a_suite_judges_has_limits(path):
    tree = ast.parse(path.read_text())
    checks = [c.id for c in load_checks().values() if ROOT / c.path == path]
    limits = {metric for check in checks for metric in load_thresholds().of(check)}
    assert checks
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "judge":
            first = node.args[0]
            if isinstance(first, ast.Constant):
                assert first.value in limits, f"{path.name}:{node.lineno}: {checks} {first.value}"


def test_limits_say_whether_they_are_calibrated_and_the_page_shows_how():
    page = (ROOT / "docs" / "calibration.md").read_text()
    for check, metrics in load_thresholds().checks.items():
        for name, limits in metrics.items():
            if limits.calibrated:
                assert f"`{check}.{name}`" in page, f"{check}.{name} is called calibrated: show its figures there"


def test_internal_links_of_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--collect-only", "-q", "suites"), ("--help",)])
def test_looking_around_takes_two_seconds_and_no_torch(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pytest", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout
    assert not re.search(r"\|\s+torch$", done.stderr, re.MULTILINE), "torch was imported"
    # processor time, so that a busy machine does not decide; -X importtime is in it
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
