"""The C++ operations as PyTorch sees them, and the build: cached, atomic, loud."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from kernels import backends, parity
from kernels.cpu import build as building
from kernels.cpu import ops

if building.compiler_version() is None:
    pytest.skip("no C++ compiler found: install g++ or set CXX", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _loaded():
    ops.load()


CPP_OPS = [op for op in backends.OPS if "cpp" in backends.names(op)]


def op_inputs(op, requires_grad=True):
    """Arguments of the registered operation: norms take rows, their weight by group, and eps."""
    inputs = list(parity.ParityCase(op, 19).inputs(head_size=5).values())
    if op.endswith("rms_norm"):
        inputs = [tensor.flatten(0, 1) for tensor in inputs[:-1]] + [inputs[-1][None]]
    tensors = [tensor.requires_grad_(requires_grad and tensor.is_floating_point()) for tensor in inputs]
    return (*tensors, 1e-5) if op.endswith("rms_norm") else tuple(tensors)


@pytest.mark.parametrize("op", CPP_OPS)
def test_registration_holds(op):
    torch.library.opcheck(getattr(torch.ops.groundthink, op), op_inputs(op))


@pytest.mark.parametrize("op", CPP_OPS)
def test_registration_of_the_backward_pass_holds(op):
    inputs = op_inputs(op, requires_grad=False)
    outputs = getattr(torch.ops.groundthink, op)(*inputs)
    if op in parity.OPS_WITH_STATE:
        last = map(torch.ones_like, (outputs,) if isinstance(outputs, torch.Tensor) else outputs)
    else:
        y, saved = outputs
        last = (saved, torch.ones_like(y))
    torch.library.opcheck(getattr(torch.ops.groundthink, f"{op}_backward"), (*inputs, *last))


@pytest.mark.parametrize("target", [-1, 67, -100])
def test_the_operation_itself_refuses_a_target_that_is_no_class(target):
    with pytest.raises(IndexError, match=f"target {target} of row 1 is not a class: there are 67"):
        torch.ops.groundthink.cross_entropy(torch.zeros(2, 67), torch.tensor([0, target]))


def test_the_exponential_is_within_one_ulp():
    # with a maximum of 0 and a sum of 1, given by hand, the gradient at the other class is e^x itself
    x = torch.cat([-torch.logspace(-6, 1.9395, 20000), torch.tensor([0.0, -87.1, -200.0, -math.inf])])
    stats = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(x), 2)
    logits, targets = x[:, None].expand(-1, 2), torch.zeros(len(x), dtype=torch.int64)
    dloss = torch.tensor(float(len(x)))
    actual = torch.ops.groundthink.cross_entropy_backward(logits, targets, stats, dloss)[:, 1]
    expected = torch.exp(x.double())
    ulp = torch.exp2(torch.frexp(expected).exponent.double() - 24)
    assert ((actual.double() - expected).abs() / ulp)[:-3].max() <= 1
    assert actual[-3:].tolist() == [0, 0, 0], "below the normal numbers it is 0"


def test_a_second_derivative_raises():
    leaves = op_inputs("wkv6")
    y, _ = torch.ops.groundthink.wkv6(*leaves)
    gradient = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_the_process_holds_one_openmp_runtime():
    maps = building.Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("/proc/self/maps is a Linux file")
    loaded = {
        line.split()[-1] for line in maps.read_text().splitlines() if re.match(r"lib[gi]?omp", line.rpartition("/")[2])
    }
    assert len(loaded) == 1, loaded


def test_the_build_is_cached_and_the_key_covers_the_sources_the_compiler_and_the_cpu(monkeypatch):
    key = building._key()
    assert building._key() == key
    others = {"FLAGS": ("-O0",), "compiler_version": lambda: "g++ 99", "_cpu_model": lambda: "i386"}
    for name, other in {**others, "_link_flags": lambda: ["libother.so"]}.items():
        with monkeypatch.context() as patched:
            patched.setattr(building, name, other)
            assert building._key() != key
    with monkeypatch.context() as patched:
        patched.setattr(building, "SOURCES", (*building.SOURCES, "build.py"))
        assert building._key() != key


@pytest.fixture
def small_build(tmp_path, monkeypatch):
    """A source that compiles in no time, in place of the kernels, with a cache of its own."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "tiny.cpp").write_text("int groundthink_tiny() { return 1; }\n")
    monkeypatch.setattr(building, "SOURCES", ("tiny.cpp",))
    monkeypatch.setattr(building, "HEADERS", ())
    monkeypatch.setattr(building, "__file__", str(sources / "build.py"))
    monkeypatch.setenv("GROUNDTHINK_KERNEL_CACHE", str(tmp_path / "cache"))
    return sources


def test_what_a_killed_build_left_behind_does_not_matter(small_build, tmp_path):
    directory = tmp_path / "cache" / building._key()
    attempt = directory / "attempt-of-a-killed-build"
    attempt.mkdir(parents=True)
    # our lock file, unlocked, and the one that torch leaves and would wait for
    for stale in (directory / "lock", directory / "attempt-of-a-killed-build" / "lock", attempt / "kernels.so"):
        stale.touch()
    library = building.build()
    assert library.stat().st_size > 0
    assert {path.name for path in directory.iterdir()} == {"lock", "kernels.so"}
    built_at = library.stat().st_mtime_ns
    assert building.build().stat().st_mtime_ns == built_at


SLOW_COMPILER = """#!/bin/sh
case "$*" in
  *--version*|*-dumpversion*|*-v) exec c++ "$@" ;;
esac
touch "$STARTED"
sleep 60
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_after_a_build_is_killed_the_next_one_goes_ahead(small_build, tmp_path, monkeypatch):
    compiler, started = tmp_path / "slow-c++", tmp_path / "started"
    compiler.write_text(SLOW_COMPILER)
    compiler.chmod(0o755)
    code = (
        "import sys; from kernels.cpu import build as b\n"
        "b.SOURCES, b.HEADERS, b.__file__, b._key = ('tiny.cpp',), (), sys.argv[1], lambda: 'key'\n"
        "b.build()"
    )
    environment = {**os.environ, "CXX": str(compiler), "STARTED": str(started)}
    arguments = [sys.executable, "-c", code, building.__file__]
    process = subprocess.Popen(arguments, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert process.poll() is None, "the build ended before it compiled anything"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    directory = tmp_path / "cache" / "key"
    assert list(directory.glob("attempt-*/lock")), "torch left no lock: this test no longer tests anything"
    monkeypatch.setattr(building, "_key", lambda: "key")
    assert building.build().stat().st_size > 0
    assert not list(directory.glob("attempt-*"))


def test_ninja_is_found_where_pip_put_it(small_build, tmp_path, monkeypatch):
    pytest.importorskip("ninja")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("c++", "g++", "sh", "as", "ld", "which"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("MAX_JOBS", raising=False)
    assert shutil.which("ninja") is None
    assert building.build().exists()
    assert os.environ["PATH"] == str(tools)
    assert "MAX_JOBS" not in os.environ


def test_a_failed_build_can_be_repeated(small_build):
    source = small_build / "tiny.cpp"
    good = source.read_text()
    for _ in range(2):
        source.write_text("not C++\n")
        with pytest.raises(building.KernelBuildError):
            building.build()
    source.write_text(good)
    assert building.build().exists()


def test_the_command_builds_and_says_what_where_and_how_long(small_build, monkeypatch, capsys):
    building.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert str(building.build()) in line
    assert str(building.compiler_version()) in line
    assert line.endswith(" s")
    monkeypatch.setattr(building, "compiler_version", lambda: None)
    building.main()
    assert "no C++ compiler found" in capsys.readouterr().out


def test_a_source_that_does_not_compile_raises_with_the_compilers_words(small_build):
    (small_build / "tiny.cpp").write_text("int groundthink_tiny() { return undeclared; }\n")
    with pytest.raises(building.KernelBuildError) as caught:
        building.build()
    message = str(caught.value)
    assert "undeclared" in message
    assert "GROUNDTHINK_WKV6=chunked" in message
    assert str(building.compiler_version()) in message


def test_no_half_finished_library_is_left(small_build, tmp_path):
    (small_build / "tiny.cpp").write_text("not C++\n")
    with pytest.raises(building.KernelBuildError):
        building.build()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_compiler_that_is_not_there_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    building.compiler_version.cache_clear()
    try:
        assert building.compiler_version() is None
    finally:
        building.compiler_version.cache_clear()
