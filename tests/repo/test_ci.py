"""CI runs what a person can run: the workflows call make and .ci/, and what these name exists."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

spec = importlib.util.spec_from_file_location("ci_gpu", ROOT / ".ci" / "gpu.py")
ci_gpu = sys.modules["ci_gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ci_gpu)


def steps_of(workflow):
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_hold_no_logic_and_call_only_what_exists(workflow):
    commands = [line for step in steps_of(workflow) for line in step.get("run", "").splitlines()]
    assert commands
    for command in commands:
        program, argument = command.split()[:2]
        assert program in ("make", "bash", "git"), command
        if program == "make":
            assert argument in MAKE_TARGETS, command
        if program == "bash":
            assert (ROOT / argument).is_file(), command
        if program == "git":
            assert argument == "clean", command


def test_the_lines_of_ci_are_those_of_contributing():
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "make gpu" in (ROOT / ".github" / "workflows" / "nightly.yml").read_text()
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(line in text for line in ("bash .ci/run", "make gpu"))


def test_every_action_is_pinned_to_one_commit_and_says_its_version():
    uses = [line.strip(" -") for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    pins = [re.fullmatch(r"uses: ([\w.-]+/[\w.-]+)[\w/-]*@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line) for line in uses]
    assert uses
    assert all(pins), uses
    found = {(pin[1], pin[2], pin[3]) for pin in pins}
    assert len(found) == len({action for action, _, _ in found}), "one action, two versions"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_targets_that_the_docs_name_exist(page):
    code = re.findall(r"`([^`\n]+)`", page.read_text()) + re.findall(r"^make .*$", page.read_text(), re.MULTILINE)
    named = {found[1] for text in code for found in [re.match(r"make ([a-z]+)\b", text)] if found}
    assert named <= MAKE_TARGETS


@pytest.mark.parametrize("step", ci_gpu.STEPS, ids=lambda step: step.name)
def test_steps_of_the_gpu_run_name_what_exists(step):
    assert step.arguments[0] == "-m"
    module, *arguments = step.arguments[1:]
    package = importlib.util.find_spec(module)
    assert package is not None, f"there is no module {module}"
    if package.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None, f"{module} is no program"
    for argument in arguments:
        if argument.startswith("suites"):
            assert (ROOT / argument).exists(), argument


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [step for step in ci_gpu.STEPS if "pytest" not in step.arguments], ids=lambda s: s.name
)
def test_steps_of_the_gpu_run_take_the_options_that_they_are_given(step):
    _, module, *arguments = step.arguments
    options = [argument for argument in arguments if argument.startswith("--")]
    if options:
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [option for option in options if option not in done.stdout] == []


def test_steps_of_the_gpu_run_come_after_what_they_need():
    names = [step.name for step in ci_gpu.STEPS]
    assert len(set(names)) == len(names)
    for place, step in enumerate(ci_gpu.STEPS):
        assert set(step.needs) <= set(names[:place])


def ending(name, code, **others):
    return ci_gpu.Step(name, ("-c", f"raise SystemExit({code})"), **{"needs": (), **others})


@pytest.mark.parametrize(
    ("code", "passes", "words"),
    [(0, True, "passed"), (10, True, "CAUTION"), (1, False, "FAILED"), (11, False, "INCOMPLETE"), (5, False, "no test"),
     (77, False, "exit code 77")],
)  # fmt: skip
def test_a_step_passes_by_its_exit_code(capfd, code, passes, words):
    assert ci_gpu.run([ending("first", code)], {}) == (0 if passes else 1)
    said = capfd.readouterr().out
    assert f"make gpu: {'PASSED' if passes else 'FAILED'}" in said
    assert words in said
    assert ("again: " in said) == (code != 0)


def test_a_step_is_not_run_without_what_it_needs_and_the_others_are(capfd, tmp_path):
    made = tmp_path / "made"
    touching = ("-c", f"open({str(made)!r}, 'w')")
    steps = [ending("build", 1), ending("suites", 0, needs=("build",)), ending("trend", 0, needs=("suites",))]
    assert ci_gpu.run([*steps, ci_gpu.Step("other", touching, needs=())], {}) == 1
    said = capfd.readouterr().out
    assert "NOT RUN: build did not pass" in said
    assert "NOT RUN: suites did not pass" in said
    assert made.exists()
    # a step that was not asked for is no obstacle
    assert ci_gpu.run([ending("suites", 0, needs=("build",))], {}) == 0


def test_times_of_the_run_before_are_kept_beside_the_new_ones(tmp_path):
    times = tmp_path / "benchmarks" / "kernels.json"

    def measuring(text):
        return ci_gpu.Step("kernels", ("-c", f"open({str(times)!r}, 'w').write({text!r})"), needs=(), writes=times)

    assert ci_gpu.run([measuring("1")], {}) == 0
    assert not ci_gpu.before(times).exists()
    assert ci_gpu.run([measuring("2")], {}) == 0
    assert (ci_gpu.before(times).read_text(), times.read_text()) == ("1", "2")
    # one that fails leaves the times of the last that did not
    assert ci_gpu.run([ending("kernels", 1, writes=times)], {}) == 1
    assert (ci_gpu.before(times).read_text(), times.exists()) == ("2", False)


@pytest.mark.slow
def test_ctrl_c_lets_the_step_save_and_ends_the_whole(tmp_path):
    step = f"""
import pathlib, time
here = pathlib.Path({str(tmp_path)!r})
try:
    (here / "began").touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    (here / "saved").touch()
"""
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.path.insert(0, {str(ROOT / ".ci")!r})
import gpu
later = gpu.Step("later", ("-c", "open({str(tmp_path / "later")!r}, 'w')"), needs=())
gpu.STEPS = (gpu.Step("first", ("-c", {step!r}), needs=()), later)
raise SystemExit(gpu.main(["run"]))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    began = time.monotonic()
    while not (tmp_path / "began").exists() and time.monotonic() - began < 60:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == ci_gpu.INTERRUPTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["began", "saved"]


def test_github_shows_the_table_and_what_went_wrong(capfd, tmp_path):
    summary = tmp_path / "summary.md"
    there = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    assert ci_gpu.run([ending("g0", 0), ending("graduate", 10), ending("tiny", 11)], there) == 1
    said = capfd.readouterr().out.splitlines()
    assert said.count("::endgroup::") == 3
    assert [line for line in said if line.startswith(("::warning", "::error"))] == [
        "::warning title=nightly%3A graduate::CAUTION: passes, and wants a person's look",
        "::error title=nightly%3A tiny::INCOMPLETE: evidence is missing or invalid",
    ]
    assert "| g0 | passed | 0.0 |" in summary.read_text()


def test_an_unknown_step_is_refused_with_those_that_there_are(capsys):
    with pytest.raises(SystemExit) as refused:
        ci_gpu.main(["run", "g1"])
    assert refused.value.code == 2
    assert "there is no step g1; allowed: build, packages, tests, g0" in capsys.readouterr().err


def program(directory, name, script):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_machine_with_all_it_takes_lacks_nothing(tmp_path):
    program(tmp_path, "nvidia-smi", "echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'")
    program(tmp_path, "nvcc", "")
    program(tmp_path, "c++", "")
    assert ci_gpu.lacking({"PATH": str(tmp_path), "CUDA_HOME": "/nonexistent"}) == []
    (tmp_path / "nvcc").unlink()
    [(what, todo)] = ci_gpu.lacking({"PATH": str(tmp_path), "CUDA_HOME": "/nonexistent"})
    assert what == "nvcc, the CUDA compiler: neither on the PATH nor in /nonexistent/bin"
    assert "set CUDA_HOME" in todo


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo No devices were found; exit 6", "nvidia-smi lists none (No devices were found)"),
        ("exit 9", "nvidia-smi lists none"),
    ],
)
def test_a_driver_without_a_gpu_is_told_of_in_its_words(tmp_path, script, why):
    program(tmp_path, "nvidia-smi", script)
    assert ci_gpu.lacking({"PATH": str(tmp_path)})[0][0] == f"an NVIDIA GPU: {why}"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_says_in_one_message_what_is_missing_and_installs_nothing(tmp_path):
    done = subprocess.run(
        [shutil.which("make"), "gpu", f"PYTHON={sys.executable}", f"GPU_VENV={tmp_path / 'venv'}"],
        cwd=ROOT, capture_output=True, text=True, env={"PATH": str(tmp_path), "CUDA_HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[:7] == [
        "make gpu: this machine lacks what it takes",
        "  missing  an NVIDIA GPU: there is no nvidia-smi, so no driver",
        "  next     run it where there is one; without a GPU: make tiny, make test, make bench",
        "  missing  nvcc, the CUDA compiler: neither on the PATH nor in /nonexistent/bin",
        "  next     install a CUDA toolkit of the version that torch was built for, or set CUDA_HOME to where one is",
        "  missing  a C++ compiler: no c++ on the PATH",
        "  next     install g++, or set CXX to a compiler",
    ]
    assert not (tmp_path / "venv").exists()
