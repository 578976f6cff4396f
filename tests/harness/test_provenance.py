"""Provenance: what it says must be so, and what it cannot know it must not claim."""

import subprocess
from importlib.metadata import version

import pytest
import torch

from harness.provenance import collect, cpu_name, git_state, installed


def git(directory, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


def test_outside_of_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {"sha": "unknown", "dirty": None}


def test_a_new_file_makes_a_checkout_dirty(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    clean = git_state(tmp_path)
    assert len(clean["sha"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "b.py").write_text("changes results")
    assert git_state(tmp_path) == {"sha": clean["sha"], "dirty": True}


def test_a_machine_without_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path)["sha"] == "unknown"


def test_only_installed_packages_have_a_version():
    assert installed(("pytest", "no-such-package-at-all")) == {"pytest": version("pytest")}


def test_a_cpu_run_names_its_processor_and_no_gpu():
    found = collect("cpu")
    assert found["gpu"] is None
    assert found["cpu"] == cpu_name() != ""
    assert found["versions"]["torch"]


@pytest.mark.gpu
def test_a_gpu_run_names_its_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    assert collect("cuda")["gpu"] == torch.cuda.get_device_name(0)
