"""The choice of a backend: by name, once, with its reason; and nothing falls back."""

import subprocess
import sys

import pytest
import torch

import kernels
from kernels import backends, jit_build, parity


@pytest.fixture
def fresh_choice(monkeypatch):
    """No choice made yet, in an environment that names no backend."""
    for op in backends.OPS:
        monkeypatch.delenv(f"GROUNDTHINK_{op.upper()}", raising=False)
    backends.select.cache_clear()
    yield monkeypatch
    backends.select.cache_clear()


def test_importing_the_package_or_the_registry_does_not_import_torch():
    code = "import kernels, kernels.backends, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_wrong_name_in_the_package_says_what_there_is():
    with pytest.raises(AttributeError, match=r"wkv7.*it has.*wkv6"):
        _ = kernels.wkv7


def test_the_best_available_backend_is_chosen_with_its_reason(fresh_choice):
    fresh_choice.setattr(jit_build, "compiler_version", lambda: "g++ 12.2")
    assert backends.select("wkv6", "cpu") == backends.Choice("wkv6", "cpp", "built with g++ 12.2")


def test_without_a_compiler_the_next_backend_is_chosen_by_name_and_says_why(fresh_choice):
    fresh_choice.setattr(jit_build, "compiler_version", lambda: None)
    choice = backends.select("wkv6", "cpu")
    assert choice.name == "chunked"
    assert "not cpp: no C++ compiler found: install g++ or set CXX" in choice.reason
    assert backends.select("causal_conv1d", "cpu").name == "shifted"
    assert backends.select("cross_entropy", "cpu").name == "torch"


def test_another_device_does_not_get_the_cpu_backend(fresh_choice):
    choice = backends.select("ssd", "cuda")
    assert choice.name == "chunked"
    assert "not cpp: runs on cpu only, not on cuda" in choice.reason


def test_the_environment_chooses_by_name(fresh_choice):
    fresh_choice.setenv("GROUNDTHINK_WKV6", "reference")
    assert backends.select("wkv6", "cpu") == backends.Choice(
        "wkv6", "reference", "GROUNDTHINK_WKV6 is set; plain PyTorch"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("chunkd", r"unknown backend of wkv6 'chunkd'; did you mean chunked\? Allowed: cpp, cuda, chunked, reference"),
        ("cpp", "GROUNDTHINK_WKV6=cpp: runs on cpu only, not on cuda.*choose among cuda, chunked, reference"),
    ],
)
def test_an_impossible_wish_raises(fresh_choice, value, message):
    fresh_choice.setenv("GROUNDTHINK_WKV6", value)
    with pytest.raises(backends.BackendError, match=message):
        backends.select("wkv6", "cuda")


def test_the_choice_is_made_once(fresh_choice):
    first = backends.select("wkv6", "cpu")
    fresh_choice.setenv("GROUNDTHINK_WKV6", "reference")
    assert backends.select("wkv6", "cpu") is first


@pytest.mark.parametrize(
    ("op", "name", "message"),
    [
        ("wkv7", "cpp", r"unknown operation 'wkv7'; did you mean wkv6\? Allowed: wkv6, ssd"),
        ("ssd", "referense", r"unknown backend of ssd 'referense'; did you mean reference\?"),
        ("ssd", "zzz", "unknown backend of ssd 'zzz'. Allowed: cpp, mamba_ssm, chunked, reference"),
    ],
)
def test_forcing_a_wrong_name_lists_what_is_allowed(op, name, message):
    with pytest.raises(backends.BackendError, match=message), backends.force(op, name):
        pass


def test_forcing_without_a_compiler_raises(monkeypatch):
    monkeypatch.setattr(jit_build, "compiler_version", lambda: None)
    with pytest.raises(backends.BackendError, match="no C\\+\\+ compiler"), backends.force("wkv6", "cpp"):
        pass


def test_force_nests_counts_and_is_described(fresh_choice):
    inputs = parity.ParityCase("wkv6", 3).inputs()
    before = backends.calls.copy()
    with backends.force("wkv6", "chunked"):
        kernels.wkv6(**inputs)
        with backends.force("wkv6", "reference"):
            kernels.wkv6(**inputs)
            assert backends.describe("cpu")["wkv6"] == {"backend": "reference", "reason": "forced"}
        kernels.wkv6(**inputs)
    counted = backends.calls - before
    assert counted == {("wkv6", "chunked"): 2, ("wkv6", "reference"): 1}
    assert set(backends.describe("cpu")) == set(backends.OPS)
    assert backends.describe("cpu")["wkv6"]["reason"] != "forced"


def test_force_ends_when_the_block_raises():
    with pytest.raises(RuntimeError, match="inside"), backends.force("ssd", "reference"):
        raise RuntimeError("inside")
    assert backends.forced("ssd") is None


def test_a_backend_that_fails_raises_and_nothing_takes_its_place(monkeypatch):
    def broken(*inputs):
        raise RuntimeError("the kernel broke")

    monkeypatch.setattr(backends, "_loaded", lambda op, name: broken)
    with pytest.raises(RuntimeError, match="the kernel broke"):
        kernels.wkv6(**parity.ParityCase("wkv6", 3).inputs())


def test_a_forced_backend_of_another_device_raises():
    with backends.force("wkv6", "cpp"), pytest.raises(backends.BackendError, match="runs on cpu only, not on meta"):
        kernels.wkv6(**parity.ParityCase("wkv6", 3).inputs(device="meta"))


def test_the_public_operations_run_on_the_meta_device():
    with backends.force("wkv6", "chunked"):
        y, final = kernels.wkv6(**parity.ParityCase("wkv6", 3).inputs(device="meta"))
    assert y.shape == (2, 3, 2, 32)
    assert final.shape == (2, 2, 32, 32)
    assert y.device == torch.device("meta")
