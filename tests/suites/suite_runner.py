"""Run the real suites in a process of their own and read the report they leave."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# A vocabulary of 512 makes the head cheap; what it does to the size of the model no test here looks at
SMALL = ("--set", "data.vocab_size=512", "--set", "train.warmup_steps=20", "--set", "eval.tokens=4096",
         "--set", "eval.final_tokens=16384")  # fmt: skip


# A study trains dozens of models: they have one narrow layer then (small_registry.py)
STUDY = ("-p", "small_registry", "--seeds", "3", "--set", "data.vocab_size=300", "--set", "data.seq_len=32",
         "--set", "train.batch_tokens.cpu=128", "--set", "train.steps=12", "--set", "train.warmup_steps=5",
         "--set", "eval.every_steps=4", "--set", "eval.tokens=1024", "--set", "eval.final_tokens=2048",
         "--set", "monitors.update_every=2", "--set", "train.threads=1")  # fmt: skip
MADE_UP_REGISTRIES = {"PYTHONPATH": str(Path(__file__).parent)}


ATTEMPTS = 3
"""A machine that others keep busy may be quiet later: how often a run that times it is tried."""


@dataclass(frozen=True)
class SuiteRun:
    """How a run over the suites ended."""

    exit_code: int
    output: str
    report: dict[str, Any]

    def records(self, check: str, metric: str) -> list[dict[str, Any]]:
        """The judged records of one metric."""
        return [r for r in self.report["records"] if (r["check"], r["metric"]) == (check, metric) and not r["info"]]

    def statuses(self, check: str, metric: str) -> set[str]:
        """Their statuses."""
        return {record["status"] for record in self.records(check, metric)}

    def status(self, check: str) -> str:
        """The status of a check; empty when it is not in the report."""
        return next((c["status"] for c in self.report["checks"] if c["id"] == check), "")


def run_suites(
    store: Path,
    report: Path,
    *arguments: str,
    suites: str = "suites/gates",
    marker: str = "tiny",
    env: dict[str, str] | None = None,
) -> SuiteRun:
    """``pytest SUITES -m MARKER`` with further arguments, in a fresh interpreter."""
    command = [sys.executable, "-m", "pytest", suites, "-m", marker, "-p", "no:cacheprovider",
               "--store", str(store), "--report", str(report), *arguments]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, **(env or {})}
    )
    written = report / "report.json"
    content = json.loads(written.read_text()) if written.is_file() else {}
    return SuiteRun(done.returncode, done.stdout + done.stderr, content)


def run_suites_when_quiet(*arguments: Any, **options: Any) -> SuiteRun:
    """``run_suites``, again while a speed could not be measured because something else kept the machine busy."""
    for _ in range(ATTEMPTS):
        run = run_suites(*arguments, **options)
        if run.status("RESOURCE") != "INVALID" or "processor time" not in run.output:
            break
    return run
