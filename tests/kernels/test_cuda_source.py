"""The CUDA source of wkv6, compiled for a CPU emulator and held against the fp64 oracle: no GPU needed."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulated_wkv6 import CHUNK, EMULATOR, SOURCES, EmulatedWkv6, compiled, emulated_wkv6

from kernels import parity
from kernels.cpu import build as building

if building.compiler_version() is None:
    pytest.skip("no C++ compiler found: install g++ or set CXX", allow_module_level=True)

# Relative RMS errors. bf16 rounds inputs of products and outputs to 8 bits; fp16 rounds outputs to 11; fp32 products
# keep 16 bits.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SEGMENTED = 12  # multiprocessors at which the long case is cut into three segments


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("emulated")


def inputs_of(length, decays, head_size, dtype, log_w_dtype=torch.float32):
    inputs = parity.ParityCase("wkv6", length, decays).inputs(head_size=head_size, dtype=dtype)
    for name in ("u_HK", "initial_state_BHKV"):
        inputs[name] = inputs[name].float()
    inputs["log_w_BTHK"] = inputs["log_w_BTHK"].to(log_w_dtype)
    return inputs


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize("decays", parity.DECAYS)
def test_outputs_states_and_gradients_agree_with_the_oracle(directory, dtype, head_size, decays):
    for length in (1, 2, 3 * CHUNK + 1):
        errors = parity.errors_of(emulated_wkv6(directory), "wkv6", inputs_of(length, decays, head_size, dtype))
        name, error = parity.worst(errors)
        assert error <= LIMITS[dtype], f"T={length}: {name}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decay_as_coarse_as_the_values_is_taken(directory, dtype):
    errors = parity.errors_of(emulated_wkv6(directory), "wkv6", inputs_of(37, "mixed", 64, dtype, log_w_dtype=dtype))
    assert parity.worst(errors)[1] <= LIMITS[dtype]


@pytest.mark.parametrize(("head_size", "dtype"), [(32, torch.bfloat16), (64, torch.bfloat16), (32, torch.float32)])
def test_rows_cut_into_segments_give_the_same(directory, head_size, dtype):
    inputs = inputs_of(24 * CHUNK + 5, "mixed", head_size, dtype)
    cut, whole = emulated_wkv6(directory, SEGMENTED), emulated_wkv6(directory)
    r, log_w = inputs["r_BTHK"], inputs["log_w_BTHK"]
    assert cut.sizes(r, log_w)[2] > 0 == whole.sizes(r, log_w)[2], "the case must be cut, and only where there is room"
    errors = parity.errors_of(cut, "wkv6", inputs)
    assert parity.worst(errors)[1] <= LIMITS[dtype]


def test_the_order_of_threads_changes_no_bit(directory):
    """A race would show: the emulator runs the threads of a block in another order for every seed."""
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[1:3]\n"
        "from test_cuda_source import digest_of_a_pass\n"
        "print(digest_of_a_pass(sys.argv[3]))"
    )
    root = str(Path(__file__).parents[2])
    emulated_wkv6(directory)  # built once, here
    digests = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "GROUNDTHINK_EMULATOR_SEED": seed}
        command = [sys.executable, "-c", code, root, str(Path(__file__).parent), str(directory)]
        result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=root)
        digests.add(result.stdout)
    assert len(digests) == 1


def digest_of_a_pass(directory):
    inputs = inputs_of(2 * CHUNK + 3, "typical", 64, torch.bfloat16)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, final = emulated_wkv6(directory)(**leaves)
    gradients = torch.autograd.grad((y.float().square().sum(), final.square().sum()), list(leaves.values()))
    return [float(tensor.double().sum()).hex() for tensor in (y, final, *gradients)]


def test_a_missing_barrier_shows(tmp_path):
    """The emulator lets no warp wait for another that it need not wait for."""
    kernels = tmp_path / "kernels"
    shutil.copytree(SOURCES, kernels)
    source = (kernels / "wkv6.cu").read_text()
    (kernels / "wkv6.cu").write_text(source.replace("__syncthreads()", "__syncwarp()"))
    racing = EmulatedWkv6(compiled(EMULATOR / "wkv6_emulated.cpp", tmp_path, kernels=kernels))
    error = parity.worst(parity.errors_of(racing, "wkv6", inputs_of(40, "typical", 64, torch.bfloat16)))[1]
    assert not error < 0.1, "NaN, or far off"


def test_it_does_not_pass_by_luck(directory):
    """The comparison fails a kernel that loses the initial state or the gradient of the final one."""
    inputs = inputs_of(20, "typical", 32, torch.float32)
    kernel = emulated_wkv6(directory)

    def without_initial_state(**named):
        return kernel(**named | {"initial_state_BHKV": named["initial_state_BHKV"] * 0})

    def without_gradient_of_the_final_state(**named):
        y, final = kernel(**named)
        return y, final.detach() + 0 * y.sum()

    for broken in (without_initial_state, without_gradient_of_the_final_state):
        assert parity.worst(parity.errors_of(broken, "wkv6", inputs))[1] > 0.01


def test_decays_have_exact_gradients_where_everything_is_forgotten(directory):
    errors = parity.errors_of(emulated_wkv6(directory), "wkv6", inputs_of(33, "forget_all", 64, torch.float32))
    assert errors["grad log_w_BTHK"] == 0


def test_nan_stays_within_its_chunk(directory):
    inputs = inputs_of(3 * CHUNK, "typical", 32, torch.bfloat16)
    inputs["v_BTHV"][0, CHUNK + 5, 0, 3] = math.nan
    y, final = emulated_wkv6(directory)(**inputs)
    assert torch.isfinite(y[0, :CHUNK]).all(), "earlier chunks must not see it"
    assert y[0, CHUNK + 5 :, 0, 3].isnan().all(), "positions from its own on must"
    assert final[0, 0, :, 3].isnan().all()
    assert torch.isfinite(y[1]).all(), "nor other rows"
    assert torch.isfinite(y[0, :, 1]).all(), "nor other heads"
