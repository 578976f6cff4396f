"""The C++ operations as PyTorch sees them, and the build: cached, atomic, loud."""

import pytest
import torch

from kernels import parity
from kernels.cpu import build as building
from kernels.cpu import ops

if building.compiler_version() is None:
    pytest.skip("no C++ compiler found: install g++ or set CXX", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def _loaded():
    ops.load()


def op_inputs(op, requires_grad=True):
    inputs = parity.ParityCase(op, 19).inputs(head_size=5)
    return tuple(tensor.requires_grad_(requires_grad) for tensor in inputs.values())


@pytest.mark.parametrize("op", ["wkv6", "ssd", "causal_conv1d"])
def test_registration_holds(op):
    torch.library.opcheck(getattr(torch.ops.groundthink, op), op_inputs(op))


@pytest.mark.parametrize("op", ["wkv6", "ssd", "causal_conv1d"])
def test_registration_of_the_backward_pass_holds(op):
    inputs = op_inputs(op, requires_grad=False)
    outputs = getattr(torch.ops.groundthink, op)(*inputs)
    upstream = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    backward = getattr(torch.ops.groundthink, f"{op}_backward")
    torch.library.opcheck(backward, (*inputs, *map(torch.ones_like, upstream)))


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
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    assert len(loaded) == 1, loaded


def test_the_build_is_cached_and_the_key_covers_the_sources_the_compiler_and_the_cpu(monkeypatch):
    key = building._key()
    assert building._key() == key
    for name, other in [("FLAGS", ("-O0",)), ("compiler_version", lambda: "g++ 99"), ("_cpu_model", lambda: "i386")]:
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
    (directory / "tmp-of-a-killed-build").mkdir(parents=True)
    (directory / "lock").touch()
    library = building.build()
    assert library.stat().st_size > 0
    built_at = library.stat().st_mtime_ns
    assert building.build().stat().st_mtime_ns == built_at


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
