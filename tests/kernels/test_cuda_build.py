"""The build of the CUDA kernels: what is missing and how to get it, the cache, and what the assembler says. No GPU."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import jit_build
from kernels.cuda import build as building

# As nvcc 13.0 writes it, kernels of three kinds.
ASSEMBLY = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function \
'_ZN11groundthink39_GLOBAL__N__168b7cdf_7_wkv6_cu_a5a88c8d20wkv6_backward_kernelI6__halfS2_Li32ELb0EEEvPT_' for 'sm_90'
ptxas info    : Function properties for \
_ZN11groundthink39_GLOBAL__N__168b7cdf_7_wkv6_cu_a5a88c8d20wkv6_backward_kernelI6__halfS2_Li32ELb0EEEvPT_
    16 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 250 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compile time = 143.896 ms
ptxas info    : Compiling entry function '_Z5totalPfi' for 'sm_90'
ptxas info    : Function properties for _Z5totalPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 4096 bytes smem
ptxas info    : Compile time = 3.1 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""

KERNELS = [
    building.KernelBuild("wkv6_backward_kernel<__half, __half, 32, false>", "sm_90", 250, 40, 16, 0, "nvcc 13.0.88"),
    building.KernelBuild("total", "sm_90", 24, 0, 0, 4096, "nvcc 13.0.88"),
    building.KernelBuild("plain", "sm_90", 8, 0, 0, 0, "nvcc 13.0.88"),
]

# Compiles as C++ what it is given, and says what it was recorded to say.
NVCC = """\
#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release 13.0, V@VERSION@"; exit ;;
  *--dryrun*) echo '#$ INCLUDES="-I/nowhere/include"  '; echo '#$ LIBRARIES=  "-L/nowhere/lib"'; exit ;;
esac
echo "$*" >> "@ARGUMENTS@"
while [ "$1" != -c ]; do shift; done
cat "@ASSEMBLY@"
exec c++ -fPIC -x c++ -c "$2" -o "$4"
"""


class Machine:
    """A GPU, a torch for CUDA 13.0, an nvcc and sources that compile in no time; none of them real."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.sources, self.cache, self.arguments = folder / "sources", folder / "cache", folder / "arguments"
        self.sources.mkdir()
        (self.sources / "tiny.cu").write_text("int groundthink_tiny() { return 1; }\n")
        (self.sources / "binding.cpp").write_text(
            "int groundthink_tiny();\nint bound() { return groundthink_tiny(); }\n"
        )
        (folder / "assembly").write_text(ASSEMBLY)
        self.install("13.0.88")
        monkeypatch.delenv("GROUNDTHINK_CUDA_ARCH", raising=False)
        monkeypatch.setenv("GROUNDTHINK_KERNEL_CACHE", str(self.cache))
        monkeypatch.setattr(building, "__file__", str(self.sources / "build.py"))
        monkeypatch.setattr(building, "LIBRARIES", ())
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))

    def install(self, version):
        """An nvcc of another version, with ``CUDA_HOME`` at it."""
        home = self.folder / f"cuda-{version}"
        (home / "bin").mkdir(parents=True)
        nvcc = home / "bin" / "nvcc"
        names = {"VERSION": version, "ARGUMENTS": self.arguments, "ASSEMBLY": self.folder / "assembly"}
        text = NVCC
        for name, value in names.items():
            text = text.replace(f"@{name}@", str(value))
        nvcc.write_text(text)
        nvcc.chmod(0o755)
        self.monkeypatch.setenv("CUDA_HOME", str(home))

    def without_nvcc(self):
        self.monkeypatch.setenv("CUDA_HOME", str(self.folder / "nowhere"))

    def libraries(self):
        return list(self.cache.rglob("*.so"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    if sys.platform != "linux" or jit_build.compiler_version() is None:
        pytest.skip("needs Linux and a C++ compiler: install g++ or set CXX")
    return Machine(tmp_path, monkeypatch)


def test_the_assembler_is_read():
    assert list(building.parse_assembly(ASSEMBLY, "nvcc 13.0.88")) == KERNELS
    assert list(building.parse_assembly("ptxas info    : 0 bytes gmem\n", "nvcc 13.0.88")) == []


@pytest.mark.parametrize(
    ("declaration", "name"),
    [
        (
            "void groundthink::(anonymous namespace)::scan<64, (bool)1, at::Half>(float*, int)",
            "scan<64, (bool)1, at::Half>",
        ),
        ("groundthink::_GLOBAL__N__1_2::mean(float const*, void (*)(int))", "mean"),
        ("scan<(a::Kind)2>(b::Of<c::T>)", "scan<(a::Kind)2>"),
        ("plain", "plain"),
    ],
)
def test_a_kernel_is_called_by_its_short_name(declaration, name):
    assert building.short_name(declaration) == name


def test_it_is_built_once_with_its_fingerprint_beside_it(machine):
    assert building.available() == (True, "nvcc and a C++ compiler build it for sm_90")
    assert machine.libraries() == [], "asking builds nothing"
    library = building.build()
    assert {path.name for path in library.parent.iterdir()} == {"kernels.so", "fingerprint.json", "lock"}
    assert building.fingerprint() == KERNELS
    (arguments,) = machine.arguments.read_text().splitlines()
    assert "-gencode=arch=compute_90,code=sm_90" in arguments
    assert "fast" not in arguments
    built_at = library.stat().st_mtime_ns
    assert building.build().stat().st_mtime_ns == built_at
    assert building.available() == (True, "built for sm_90")


def test_a_built_library_needs_no_toolkit(machine):
    library = building.build()
    machine.without_nvcc()
    assert building.available() == (True, "built for sm_90")
    assert building.build() == library
    assert building.fingerprint() == KERNELS


def test_another_toolkit_builds_anew(machine):
    library = building.build()
    machine.install("13.1.5")
    assert building.build() != library
    assert building.fingerprint()[0].toolchain == "nvcc 13.1.5"


def test_the_key_covers_sources_their_names_flags_architecture_and_torch(machine):
    def keys():
        yield building._inputs_key()
        for name, value in (("CUDA_FLAGS", ("-O0",)), ("CPP_FLAGS", ("-O0",)), ("LIBRARIES", ("-lother",))):
            with machine.monkeypatch.context() as patched:
                patched.setattr(building, name, value)
                yield building._inputs_key()
        for owner, name in ((torch, "__version__"), (torch.version, "cuda")):
            with machine.monkeypatch.context() as patched:
                patched.setattr(owner, name, "13.9")
                yield building._inputs_key()
        with machine.monkeypatch.context() as patched:
            patched.setenv("GROUNDTHINK_CUDA_ARCH", "9.0a")
            yield building._inputs_key()
        (machine.sources / "tiny.h").write_text("// a header\n")
        yield building._inputs_key()
        (machine.sources / "tiny.h").rename(machine.sources / "other.cuh")
        yield building._inputs_key()

    assert all(a != b for a, b in itertools.combinations(list(keys()), 2))
    assert building._inputs_key() == building._inputs_key()


def test_what_a_killed_build_left_behind_does_not_matter(machine):
    directory = building.build().parent
    (directory / "kernels.so").unlink()
    attempt = directory / "attempt-of-a-killed-build"
    attempt.mkdir()
    (attempt / "kernels.so").touch()
    assert building.build().stat().st_size > 0
    assert {path.name for path in directory.iterdir()} == {"kernels.so", "fingerprint.json", "lock"}


@pytest.mark.parametrize("source", ["tiny.cu", "binding.cpp"])
def test_a_source_that_does_not_compile_raises_with_the_compilers_words_and_leaves_nothing(machine, source):
    good = (machine.sources / source).read_text()
    (machine.sources / source).write_text("int bound() { return undeclared; }\n")
    with pytest.raises(building.KernelBuildError) as caught:
        building.build()
    for part in ("undeclared", "nvcc 13.0.88", "for sm_90", "GROUNDTHINK_WKV6=chunked"):
        assert part in str(caught.value)
    assert machine.libraries() == []
    assert not list(machine.cache.rglob("attempt-*"))
    (machine.sources / source).write_text(good)
    assert building.build().exists()


def test_what_does_not_resolve_fails_the_build_and_not_the_first_use(machine):
    (machine.sources / "tiny.cu").write_text("int another_name() { return 1; }\n")
    with pytest.raises(building.KernelBuildError, match="undefined reference"):
        building.build()


def test_a_compiler_that_says_nothing_of_its_kernels_is_not_believed(machine):
    (machine.folder / "assembly").write_text("")
    with pytest.raises(building.KernelBuildError, match="named no kernel of tiny"):
        building.build()
    assert machine.libraries() == []


def test_a_folder_with_spaces_and_dollars_is_built_in(machine, tmp_path):
    machine.monkeypatch.setenv("GROUNDTHINK_KERNEL_CACHE", str(tmp_path / "a cache: $HOME"))
    moved = machine.sources.rename(tmp_path / "my sources: $1")
    machine.monkeypatch.setattr(building, "__file__", str(moved / "build.py"))
    assert building.build().exists()


def test_the_machine_says_what_is_missing_and_how_to_get_it(machine):
    def why(change):
        with machine.monkeypatch.context() as patched:
            change(patched)
            ok, reason = building.available()
        assert not ok
        return reason

    assert why(lambda m: m.setattr(torch.version, "cuda", None)).endswith(
        "is built without CUDA: install a CUDA build of it (https://pytorch.org)"
    )
    assert "nvidia-smi" in why(lambda m: m.setattr(torch.cuda, "is_available", lambda: False))
    assert "capability 8.0 or newer, and this is 7.5" in why(
        lambda m: m.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    )
    for wrong in ("8.0", "9.1", "sm_90"):
        assert f"GROUNDTHINK_CUDA_ARCH={wrong} does not run on this GPU: unset it or write 9.0" in why(
            lambda m, wrong=wrong: m.setenv("GROUNDTHINK_CUDA_ARCH", wrong)
        )
    assert "no C++ compiler found" in why(lambda m: m.setattr(jit_build, "compiler_version", lambda: None))
    assert "install the CUDA toolkit 13.0" in why(lambda m: m.setenv("CUDA_HOME", "/nowhere"))


def test_a_toolkit_of_another_cuda_than_torchs_is_refused_by_name(machine):
    machine.install("12.8.93")
    ok, why = building.available()
    assert not ok
    assert "is of CUDA 12.8.93" in why
    assert why.endswith("install a CUDA toolkit 13 and set CUDA_HOME")
    with pytest.raises(building.KernelBuildError, match=r"cannot be built.*GROUNDTHINK_WKV6=chunked"):
        building.build()


@pytest.mark.parametrize("arch", ["90", "sm_90", "nine"])
def test_an_architecture_that_is_none_is_refused(machine, arch):
    machine.monkeypatch.setenv("GROUNDTHINK_CUDA_ARCH", arch)
    with pytest.raises(building.KernelBuildError, match=r"is no CUDA architecture; write it as 9\.0"):
        building.build()


def test_a_torch_without_cuda_compiles_the_kernels_but_does_not_link_them(machine, capsys):
    machine.monkeypatch.setattr(torch.version, "cuda", None)
    assert building.assemble("9.0") == KERNELS
    with pytest.raises(building.KernelBuildError, match="is built without CUDA"):
        building.build()
    machine.monkeypatch.setattr(sys, "argv", ["build", "--arch", "9.0"])
    building.main()
    assert "compiled, not linked" in capsys.readouterr().out


def test_the_command_builds_and_prints_what_the_assembler_made(machine, capsys):
    machine.monkeypatch.setattr(sys, "argv", ["build"])
    building.main()
    heading, *rows, last = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["kernel", "arch", "registers"]
    assert [row.split()[-5:] for row in rows] == [
        ["sm_90", "250", "40", "16", "0"],
        ["sm_90", "24", "0", "0", "4096"],
        ["sm_90", "8", "0", "0", "0"],
    ]
    assert str(building.build()) in last
    machine.without_nvcc()
    machine.monkeypatch.setenv("GROUNDTHINK_KERNEL_CACHE", str(machine.folder / "empty"))
    with pytest.raises(SystemExit, match="no nvcc"):
        building.main()


def test_a_fingerprint_is_json_that_a_person_can_read(machine):
    kept = json.loads((building.build().parent / "fingerprint.json").read_text())
    assert kept[0]["name"] == KERNELS[0].name
    assert kept[0]["registers"] == 250


needs_nvcc = pytest.mark.skipif(building.find_toolkit() is None, reason="needs nvcc: install a CUDA toolkit")


@needs_nvcc
def test_every_kernel_compiles_for_an_h200_and_spills_nothing():
    kernels = building.assemble("9.0")
    names = {kernel.name.split("<")[0] for kernel in kernels}
    for op in ("wkv6", "cross_entropy"):
        assert {f"{op}_forward_kernel", f"{op}_backward_kernel"} <= names
    assert {kernel.arch for kernel in kernels} == {"sm_90"}
    assert [kernel for kernel in kernels if kernel.spill_bytes] == []
    assert len({kernel.name for kernel in kernels}) == len(kernels), "a fingerprint is looked up by name"


@needs_nvcc
def test_the_binding_compiles_against_the_headers_of_torch_for_cuda(tmp_path):
    folder, of_torch = Path(building.__file__).parent, Path(torch.__file__).parent
    # generated by a build of torch for CUDA, and absent from one for the CPU
    generated = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    generated.parent.mkdir(parents=True)
    generated.write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
    headers = ["-isystem", str(of_torch / "include"), *building.find_toolkit().include_flags, "-isystem", str(tmp_path)]
    command = [*jit_build.compiler(), *building.CPP_FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *headers]
    done = subprocess.run([*command, str(folder / "binding.cpp")], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
