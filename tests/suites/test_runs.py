"""The same numbers in one process and in two, nothing trained twice, an interrupted training resumed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suite_runner import ROOT, SMALL, run_suites

QUICK = (*SMALL, "--set", "train.steps=60", "--set", "eval.every_steps=20", "-k", "g2 or g3 or g4 or stop")


def numbers(run):
    """What was measured, without what depends on the clock or the process."""
    return sorted(
        (r["check"], r["metric"], r["case"], str(r["layer"]), r["value"], r["ci"], r["status"], r["checkpoint_sha256"])
        for r in run.report["records"]
    )


@pytest.fixture(scope="module")
def cold(store, tmp_path_factory):
    return run_suites(store, tmp_path_factory.mktemp("cold") / "report", *QUICK, "--model", "CP")


@pytest.mark.slow
def test_two_workers_find_the_same_numbers_as_one_process(cold, store, tmp_path):
    again = tmp_path / "store"
    shutil.copytree(store / "corpora", again / "corpora")
    spread = run_suites(again, tmp_path / "report", *QUICK, "--model", "CP", "-n", "2")

    assert spread.exit_code == cold.exit_code, spread.output
    assert numbers(spread) == numbers(cold)


@pytest.mark.slow
def test_the_second_run_trains_nothing_and_finds_the_same(cold, store, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.suffix not in {".lock", ""}}
    warm = run_suites(store, tmp_path / "report", *QUICK, "--model", "CP")

    assert numbers(warm) == numbers(cold)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((store / "runs").glob("*/outcome.json"))) >= 1


@pytest.mark.slow
def test_the_saved_report_scores_the_same_again(cold):
    report = Path(re.search(r"report\s+(\S+)/decision.html", cold.output)[1])
    done = subprocess.run(
        [sys.executable, "-m", "harness.rescore", str(report)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_damaged_store_entry_is_named_and_is_not_a_pass(store, tmp_path):
    mine = tmp_path / "store"
    shutil.copytree(store, mine)
    weights = sorted(mine.glob("runs/*/checkpoints/*/model.safetensors"))
    for path in weights:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    run = run_suites(mine, tmp_path / "report", *QUICK, "--model", "CP")

    assert run.exit_code == 11, run.output
    assert "python -m harness.store prune --damaged" in run.output
    assert run.status("G3") == "INVALID"

    command = [sys.executable, "-m", "harness.store", "prune", "--damaged", "--store", str(mine)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert run_suites(mine, tmp_path / "mended", *QUICK, "--model", "CP").status("G3") in {"PASS", "WARN"}


@pytest.mark.slow
def test_ctrl_c_leaves_a_training_that_goes_on_where_it_was(store, tmp_path):
    mine = tmp_path / "store"
    shutil.copytree(store / "corpora", mine / "corpora")
    steps = ("--set", "train.steps=400", "-k", "loss_falls")
    command = [sys.executable, "-m", "pytest", "suites/gates", "-p", "no:cacheprovider", "--store", str(mine),
               "--report", str(tmp_path / "report"), *SMALL, *steps]  # fmt: skip
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (logs := list(mine.glob("runs/*.partial/metrics.jsonl"))) or logs[0].stat().st_size < 3000:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.stdout.read()
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 2, output
    partial = [path for path in (mine / "runs").iterdir() if path.name.endswith(".partial")]
    [saved] = partial[0].glob("resume/step-*")

    finished = run_suites(mine, tmp_path / "again", *SMALL, *steps)
    assert finished.status("G3") in {"PASS", "WARN"}, finished.output
    [entry] = (mine / "runs").glob("*/outcome.json")
    logged = (entry.parent / "metrics.jsonl").read_text().count('"kind":"step"')
    assert logged == 400
    assert int(saved.name.removeprefix("step-")) > 0


@pytest.mark.slow
def test_a_machine_without_a_compiler_runs_on_plain_torch_and_says_so(store, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "git").symlink_to(shutil.which("git") or "/bin/false")
    env = {"PATH": str(empty), "CXX": "", "GROUNDTHINK_KERNEL_CACHE": str(tmp_path / "cache")}
    run = run_suites(store, tmp_path / "report", "-k", "g0 and (executed or oracle)", env=os.environ | env)

    notes = {r["case"]: r["note"] for r in run.records("G0", "executed")}
    assert "chunked" in notes["wkv6"]
    assert "no C++ compiler found: install g++ or set CXX" in notes["wkv6"]
    assert run.status("G0") == "PASS", run.output
