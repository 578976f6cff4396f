"""What a machine with an NVIDIA GPU runs every night in CI, and by hand as ``make gpu``.

    python .ci/gpu.py require           say what this machine lacks for it, if anything; exit code 2
    python .ci/gpu.py run [STEP ...]    the steps in their order, all of them where none is named; exit code 0, 1 or 2

``run`` passes when every step does. A decision of CAUTION (exit code 10) passes with a warning, as a named person may
go on with it; HOLD and NO-GO (1) and INCOMPLETE (11) do not pass: this is the machine that is to bring the evidence.
Reports and times are left in ``reports/out/gpu/``. ``require`` needs no package, ``run`` the environment that ``make
gpu`` makes. Ctrl-C ends the step that runs as it ends alone, and the whole with it.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPORTS = Path("reports/out/gpu")
TIMES = REPORTS / "benchmarks"

SLOWER = "1.10"
"""A row that takes so many times what it took in the run before has got slower, and its step does not pass."""

CAUTION = 10
INTERRUPTED = 130

MEANINGS = {
    0: "passed",
    1: "FAILED",
    2: "FAILED: interrupted, or bad usage",
    4: "FAILED: bad usage",
    5: "FAILED: no test was collected",
    CAUTION: "CAUTION: passes, and wants a person's look",
    11: "INCOMPLETE: evidence is missing or invalid",
}


@dataclass(frozen=True)
class Step:
    """One program to run.

    arguments  those of Python
    needs      steps without which this one says nothing: it is not run after they failed
    writes     the file of times that it makes; that of the run before is kept beside it
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ("build",)
    writes: Path | None = None

    @property
    def command(self) -> str:
        """What a person would type."""
        module = self.arguments[1:] if self.arguments[:2] == ("-m", "pytest") else ("python", *self.arguments)
        return shlex.join(module)


@dataclass(frozen=True)
class Ended:
    """How a step ended. code is its exit code, None for one that was not run; seconds are of wall time."""

    step: Step
    code: int | None
    seconds: float
    note: str

    @property
    def passed(self) -> bool:
        """Whether the whole may pass with it."""
        return self.code in (0, CAUTION)


def before(times: Path) -> Path:
    """Where the times of the run before are kept."""
    return times.with_suffix(f".before{times.suffix}")


def _suites(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", *arguments, "--device", "cuda", f"--report={REPORTS / name}")


def _times(module: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.{module}", "--device", "cuda", *arguments, "--json", str(TIMES / f"{module}.json"))


def _trend(module: str) -> tuple[str, ...]:
    new = TIMES / f"{module}.json"
    return ("-m", "benchmarks.trend", str(before(new)), str(new), "--limit", SLOWER)


STEPS = (
    Step("build", ("-m", "kernels.cuda.build"), needs=()),
    Step("packages", ("-m", "kernels.packages"), needs=()),
    Step("tests", ("-m", "pytest", "-m", "gpu", f"--junitxml={REPORTS / 'tests.xml'}")),
    Step("g0", _suites("g0", "suites/gates/test_g0_kernel_reality.py", "-m", "tiny")),
    Step("tiny", _suites("tiny", "suites", "-m", "tiny"), needs=("build", "g0")),
    Step("graduate", _suites("graduate", "--graduate", "8M"), needs=("build", "g0")),
    Step("kernels", _times("kernels"), writes=TIMES / "kernels.json"),
    Step("step", _times("step", "--scale", "8M"), writes=TIMES / "step.json"),
    Step("kernels-trend", _trend("kernels"), needs=("kernels",)),
    Step("step-trend", _trend("step"), needs=("step",)),
)


def lacking(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """What this machine lacks, and what to do about each."""
    path = environment.get("PATH", "")
    found = []
    no_gpu = _no_gpu(shutil.which("nvidia-smi", path=path))
    if no_gpu:
        found.append(
            (f"an NVIDIA GPU: {no_gpu}", "run it where there is one; without a GPU: make tiny, make test, make bench")
        )
    toolkit = environment.get("CUDA_HOME", "/usr/local/cuda")
    if shutil.which("nvcc", path=path) is None and shutil.which("nvcc", path=f"{toolkit}/bin") is None:
        found.append(
            (
                f"nvcc, the CUDA compiler: neither on the PATH nor in {toolkit}/bin",
                "install a CUDA toolkit of the version that torch was built for, or set CUDA_HOME to where one is",
            )
        )
    compiler = (shlex.split(environment.get("CXX", "")) or ["c++"])[0]
    if shutil.which(compiler, path=path) is None:
        found.append((f"a C++ compiler: no {compiler} on the PATH", "install g++, or set CXX to a compiler"))
    return found


def _no_gpu(program: str | None) -> str:
    """Why no GPU can be had; empty where there is one."""
    if program is None:
        return "there is no nvidia-smi, so no driver"
    done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0 and done.stdout.startswith("GPU "):
        return ""
    said = (done.stdout + done.stderr).strip().splitlines()
    return f"nvidia-smi lists none ({said[-1]})" if said else "nvidia-smi lists none"


def require(environment: Mapping[str, str]) -> int:
    """Say what is missing. Exit code 0 or 2."""
    missing = lacking(environment)
    if missing:
        lines = [f"  missing  {what}\n  next     {todo}" for what, todo in missing]
        sys.stderr.write("make gpu: this machine lacks what it takes\n" + "\n".join(lines) + "\n")
    return 2 if missing else 0


def run(steps: Sequence[Step], environment: Mapping[str, str]) -> int:
    """Run them and tell of each in a table: on the terminal and, in GitHub Actions, on the page of the job.

    Exit code 0 when all passed, else 1.
    """
    from harness.github import command, runs_there, summarise

    there = runs_there(environment)
    ended: list[Ended] = []
    for step in steps:
        _say(f"::group::{step.name}" if there else f"\n=== {step.name}: {step.command}")
        ended.append(_run(step, ended))
        if there:
            _say("::endgroup::")
    _say("\n" + "\n".join(terminal(ended)))
    if there:
        for one in ended:
            if one.code != 0:
                _say(command("warning" if one.passed else "error", one.note, title=f"nightly: {one.step.name}"))
        trouble = summarise(environment, markdown(ended))
        if trouble:
            _say(trouble)
    return 0 if all(one.passed for one in ended) else 1


def _run(step: Step, ended: Sequence[Ended]) -> Ended:
    failed = [one.step.name for one in ended if one.step.name in step.needs and not one.passed]
    if failed:
        return Ended(step, None, 0.0, f"NOT RUN: {', '.join(failed)} did not pass")
    if step.writes is not None:
        step.writes.parent.mkdir(parents=True, exist_ok=True)
        if step.writes.exists():
            step.writes.replace(before(step.writes))
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *step.arguments])  # noqa: S603
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # the terminal has sent it to the step as well, which may have something to save
        process.wait()
        raise
    note = MEANINGS.get(code, f"FAILED with exit code {code}")
    return Ended(step, code, time.monotonic() - began, note)


def terminal(ended: Sequence[Ended]) -> list[str]:
    """A line a step: how it ended, how long it took and how to run it again."""
    width = max(len(one.step.name) for one in ended)
    verdict = "PASSED" if all(one.passed for one in ended) else "FAILED"
    return [
        f"make gpu: {verdict}; reports in {REPORTS}/",
        *(f"{one.step.name:{width}}  {one.seconds / 60:5.1f} min  {one.note}" for one in ended),
        *(f"again: {one.step.command}" for one in ended if one.code != 0),
    ]


def markdown(ended: Sequence[Ended]) -> str:
    """The same for the page of the job."""
    rows = [f"| {one.step.name} | {one.note} | {one.seconds / 60:.1f} | `{one.step.command}` |\n" for one in ended]
    return "\n## make gpu\n\n| step | ended | min | command |\n|---|---|---|---|\n" + "".join(rows)


def _say(line: str) -> None:
    """Before what the next program prints."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """One command; see the top of this file."""
    parser = argparse.ArgumentParser(prog="make gpu", description="What CI runs every night on a machine with a GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("require", help="say what this machine lacks")
    running = commands.add_parser("run", help="the steps, or those that are named")
    names = [step.name for step in STEPS]
    running.add_argument("step", nargs="*", metavar="STEP", help=", ".join(names))
    options = parser.parse_args(arguments)
    os.chdir(Path(__file__).parents[1])
    if options.command == "require":
        return require(os.environ)
    for name in options.step:
        if name not in names:
            parser.error(f"there is no step {name}; allowed: {', '.join(names)}")
    try:
        return run([step for step in STEPS if not options.step or step.name in options.step], os.environ)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
