"""Builds on record: a malformed table is refused, a change is told by kernel and figure, and the record is fresh."""

import re

import pytest

from harness.kernel_builds import BuildsError, StoredBuild, differences, load_builds, render
from kernels.cuda import build as building
from kernels.cuda.build import KernelBuild

FORWARD = "wkv6_forward_kernel<__nv_bfloat16, float, 32, false>"


def built(name=FORWARD, registers=110, spill_bytes=0, shared_bytes=0):
    return KernelBuild(name, "sm_90", registers, spill_bytes, 0, shared_bytes, "nvcc 13.0.88")


@pytest.fixture
def load(tmp_path):
    def from_text(text):
        path = tmp_path / "kernel_builds.toml"
        path.write_text(text)
        return load_builds(path)

    return from_text


@pytest.fixture
def on_record(load):
    return load(render([built()])).builds[0]


def test_what_is_printed_is_what_is_read(load):
    text = render([built(), built("scan<64>", 40, 8, 128)])
    assert load(text).builds[0] == StoredBuild.model_validate(
        {
            "arch": "sm_90",
            "toolchain": "nvcc 13.0.88",
            "kernels": [
                {"name": "scan<64>", "registers": 40, "spill_bytes": 8, "shared_bytes": 128},
                {"name": FORWARD, "registers": 110, "spill_bytes": 0, "shared_bytes": 0},
            ],
        }
    )
    assert text.startswith("[[builds]]\n")


def test_the_same_build_differs_in_nothing(on_record):
    assert differences([built()], on_record) == []


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (built(registers=111), "registers 110 -> 111"),
        (built(spill_bytes=16, shared_bytes=4), "spill_bytes 0 -> 16, shared_bytes 0 -> 4"),
    ],
)
def test_a_change_is_told_by_figure(now, what, on_record):
    [found] = differences([now], on_record)
    assert (found.kernel, found.what) == (FORWARD, what)


def test_kernels_that_came_and_went_are_told(on_record):
    found = differences([built("new<1>")], on_record)
    assert {(d.kernel, d.what) for d in found} == {
        (FORWARD, "on record, and not in this build"),
        ("new<1>", "in this build, and not on record"),
    }


def test_a_build_is_found_by_architecture_and_toolchain(load):
    table = load(render([built()]))
    assert table.find("sm_90", "nvcc 13.0.88") is not None
    assert table.find("sm_80", "nvcc 13.0.88") is None
    assert table.find("sm_90", "nvcc 13.1.0") is None


def test_the_kernel_of_the_founding_documents_stands_beside_ours_of_head_size_32():
    forward, backward = load_builds().references
    assert (forward.registers, backward.registers) == (70, 80)
    assert forward.title == "wkv6_forward_kernel, head size 32"
    assert forward.stands_beside(FORWARD)
    assert forward.stands_beside("wkv6_forward_kernel<float, float, 32, true>")
    assert not forward.stands_beside("wkv6_forward_kernel<__nv_bfloat16, float, 64, false>")
    assert not forward.stands_beside("wkv6_backward_kernel<__nv_bfloat16, float, 32, false>")
    assert not backward.stands_beside("wkv6_sum_bonus_kernel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[builds]]\narch = 'sm_90'\n", r"\[builds.0.toolchain\] Field required"),
        (
            "[[builds]]\narch = 'a'\ntoolchain = 'b'\nkernels = []\nregister = 3\n",
            r"\[builds.0.register\] Extra inputs",
        ),
        ("[[references]]\nkernel = 'k'\nhead_size = 32\nregisters = -1\nsource = 'x'\n", r"\[references.0.registers\]"),
        ("[[builds]\n", "not TOML"),
    ],
)
def test_a_malformed_table_is_refused_by_the_name_of_the_entry(text, message, load):
    with pytest.raises(BuildsError, match=message):
        load(text)


@pytest.mark.slow
@pytest.mark.skipif(building.find_toolkit() is None, reason="needs nvcc: install the CUDA toolkit or set CUDA_HOME")
def test_the_record_is_of_the_kernels_as_they_are():
    toolchain = f"nvcc {building.find_toolkit().version}"
    entries = [entry for entry in load_builds().builds if entry.toolchain == toolchain]
    if not entries:
        pytest.skip(f"no build by {toolchain} is on record")
    for entry in entries:
        major, minor, suffix = re.fullmatch(r"sm_(\d+)(\d)([af]?)", entry.arch).groups()
        found = differences(building.assemble(f"{major}.{minor}{suffix}"), entry)
        assert found == [], f"run python -m harness.kernel_builds --arch {major}.{minor} and put it into the table"
