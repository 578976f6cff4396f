"""The CUDA source of the cross entropy, compiled for a CPU emulator and held against the fp64 oracle: no GPU needed."""

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from emulated_wkv6 import DTYPES, EMULATOR, compiled, filled, pointer

from kernels import jit_build, parity

if jit_build.compiler_version() is None:
    pytest.skip("no C++ compiler found: install g++ or set CXX", allow_module_level=True)

# Relative RMS errors: half a unit in the last place of the gradient, and in fp32 that of the exponential.
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@cache
def library(directory):
    return compiled(EMULATOR / "cross_entropy_emulated.cpp", directory)


class Emulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, directory, logits, targets):
        sizes = (DTYPES[logits.dtype], *logits.shape)
        stats, losses, loss = (filled(shape, torch.float32) for shape in ((len(logits), 3), (len(logits),), ()))
        assert library(directory).forward(*sizes, *map(pointer, (logits, targets, stats, losses, loss))) == 0
        ctx.directory = directory
        ctx.save_for_backward(logits, targets, stats)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        logits, targets, stats = ctx.saved_tensors
        dlogits = filled(logits.shape, logits.dtype)
        tensors = (logits, targets, stats, dloss, dlogits)
        assert library(ctx.directory).backward(DTYPES[logits.dtype], *logits.shape, *map(pointer, tensors)) == 0
        return None, dlogits, None


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return str(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def cross_entropy(directory):
    return lambda logits_NV, targets_N: Emulated.apply(directory, logits_NV, targets_N)


def loss_and_gradient(cross_entropy, logits, targets):
    logits = logits.clone().requires_grad_()
    loss = cross_entropy(logits, targets)
    return loss.item(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
# less than a vector; rows at every offset from a multiple of 16 bytes; a warp and more; several rounds of a block
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 64, 67, 515, 2048, 9001])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_loss_and_gradient_agree_with_the_oracle(cross_entropy, dtype, classes, scale):
    generator = torch.Generator().manual_seed(classes)
    rows = 3 if classes > 1000 else 9
    logits = (scale * torch.randn(rows, classes, generator=generator)).to(dtype)
    targets = torch.randint(classes, (rows,), generator=generator)
    errors = parity.errors_of(cross_entropy, "cross_entropy", {"logits_NV": logits, "targets_N": targets})
    assert errors["y"] <= LIMITS[torch.float32]
    assert errors["grad logits_NV"] <= LIMITS[dtype]


def test_rows_of_any_confidence_agree_with_the_oracle(cross_entropy):
    for length in (1, 65):
        errors = parity.errors_of(cross_entropy, "cross_entropy", parity.ParityCase("cross_entropy", length).inputs())
        assert parity.worst(errors)[1] <= LIMITS[torch.float32], errors


def test_a_wrong_target_is_noticed(cross_entropy):
    inputs = parity.ParityCase("cross_entropy", 9).inputs()

    def shifted(logits_NV, targets_N):
        return cross_entropy(logits_NV, (targets_N + 1) % logits_NV.shape[1])

    assert parity.errors_of(shifted, "cross_entropy", inputs)["grad logits_NV"] > 0.1


@pytest.mark.parametrize("target", [0, 300])
def test_a_sure_prediction_keeps_its_digits(cross_entropy, target):
    """Another class with the chance e^-20: rounded, the softmax of the target is 1 and its loss is 0."""
    logits = torch.full((1, 515), -math.inf)
    logits[0, target], logits[0, 7] = 5.0, -15.0
    loss, gradient = loss_and_gradient(cross_entropy, logits, torch.tensor([target]))
    assert loss == pytest.approx(math.exp(-20), rel=1e-5)
    assert gradient[0, target].item() == pytest.approx(-math.exp(-20), rel=1e-5)
    assert gradient.sum() == 0


def test_a_class_without_a_chance_gets_no_gradient(cross_entropy):
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    loss, gradient = loss_and_gradient(cross_entropy, logits, torch.tensor([0]))
    assert loss == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.0, 0.5]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("at", [0, 40, 66])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_the_loss_so_and_the_gradient_of_its_row(cross_entropy, dtype, at, value):
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(4, 67, generator=generator).to(dtype)
    targets = torch.tensor([3, 40, 66, 0])
    _, healthy_gradient = loss_and_gradient(cross_entropy, healthy, targets)
    logits = healthy.clone()
    logits[1, at] = value
    loss, gradient = loss_and_gradient(cross_entropy, logits, targets)
    if value != -math.inf:
        assert not math.isfinite(loss)
        assert gradient[1].isnan().any()
    else:
        assert loss == math.inf if at == targets[1] else math.isfinite(loss)
        assert gradient[1].isfinite().all()
    others = torch.tensor([0, 2, 3])
    assert torch.equal(gradient[others], healthy_gradient[others])


def test_a_row_without_any_chance_makes_the_loss_nan(cross_entropy):
    logits = torch.zeros(2, 67)
    logits[1] = -math.inf
    loss, gradient = loss_and_gradient(cross_entropy, logits, torch.tensor([0, 0]))
    assert math.isnan(loss)
    assert gradient[0].isfinite().all()
    assert gradient[1].isnan().all()


def in_a_process(directory, call, seed="0"):
    root, here = str(Path(__file__).parents[2]), str(Path(__file__).parent)
    code = f"import sys; sys.path[:0] = sys.argv[1:3]; import {Path(__file__).stem} as t; print(t.{call}(sys.argv[3]))"
    environment = {**os.environ, "GROUNDTHINK_EMULATOR_SEED": seed}
    library(directory)  # built once, here
    command = [sys.executable, "-c", code, root, here, directory]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd=root)


def digest_of_a_pass(directory):
    inputs = parity.ParityCase("cross_entropy", 5).inputs(dtype=torch.bfloat16)
    loss, gradient = loss_and_gradient(lambda *given: Emulated.apply(directory, *given), *inputs.values())
    return loss.hex(), gradient.double().sum().item().hex()


def test_the_order_of_threads_changes_no_bit(directory):
    """A race would show: the emulator runs the threads of a block in another order for every seed."""
    digests = {in_a_process(directory, "digest_of_a_pass", seed).stdout for seed in ("1", "2", "3")}
    assert len(digests) == 1
    assert "0x" in digests.pop()


def loss_of_no_class(directory):
    return Emulated.apply(directory, torch.zeros(2, 67), torch.tensor([66, 67])).item()


def test_a_target_that_is_no_class_ends_the_kernel_with_a_message(directory):
    done = in_a_process(directory, "loss_of_no_class")
    assert done.returncode != 0
    assert "a target is no class" in done.stderr
