"""mamba-ssm's Triton kernels themselves, on the CPU: they run in Triton's interpreter, in a process of their own."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

for _module in ("triton", "einops", "mamba_ssm"):
    if importlib.util.find_spec(_module) is None:
        pytest.skip(f"{_module} is not installed: make interpreted does it", allow_module_level=True)

PROGRAM = Path(__file__).parent / "interpreted" / "mamba_ssm_interpreted.py"
# The gradient of A is a sum of terms that cancel where decays are strong; all else is within 1e-6
WITHIN = 5e-5


@pytest.fixture(scope="module")
def found():
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(PROGRAM.parents[1])])
    run = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM)],
        env=os.environ | {"PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {row["check"]: row["errors"] for row in map(json.loads, run.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        *(f"T={T}" for T in (1, 2, 64)),
        *(f"T=65, {decays}" for decays in ("typical", "forget_all", "strong", "near_one", "mixed")),
        "T=130, strong",
        "T=130 in chunks of 64",
        "groups",
        "split and carry",
        "loss of the output",
        "loss of the final state",
    ],
)
def test_the_scan_agrees_with_the_oracle_in_outputs_states_and_gradients(found, check):
    assert "dt" in " ".join(found[check])
    assert all(error < WITHIN for error in found[check].values()), found[check]


@pytest.mark.slow
def test_the_fused_mixer_is_its_parts_in_one(found):
    errors = found["fused"]
    assert {"y", "zxBCdt", "conv_weight", "dt_bias", "A_log", "D", "norm_weight"} <= errors.keys()
    assert all(error < WITHIN for error in errors.values()), errors


@pytest.mark.slow
def test_registration_holds(found):
    assert found["registration"] == {}


@pytest.mark.slow
def test_no_error_is_not_a_number(found):
    assert not any(math.isnan(error) for errors in found.values() for error in errors.values())
