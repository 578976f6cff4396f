"""Every backend against the fp64 oracle: outputs, final states and all gradients, at every length and decay."""

import functools
import math

import pytest
import torch

from kernels import backends, parity, reference

CASES = list(parity.parity_cases())
FAST = [(case, name) for case in CASES for name in backends.names(case.op, "cpu") if name != "reference"]
# The oracle itself in fp32, where no fast backend exists to be compared
FAST += [(case, "reference") for case in CASES if backends.names(case.op, "cpu") == ("reference",)]


def label(value):
    return str(value)


@pytest.mark.parametrize(("case", "backend"), FAST, ids=label)
def test_backend_equals_the_oracle_in_fp32(case, backend):
    errors = parity.compare(case.op, backend, case.inputs(head_size=16))
    assert all(error <= 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize(("case", "backend"), [(c, b) for c, b in FAST if c.length in (2, 65, 257)], ids=label)
def test_backend_equals_the_oracle_in_fp64(case, backend):
    errors = parity.compare(case.op, backend, case.inputs(head_size=16, dtype=torch.float64))
    assert all(error <= 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("size", [1, 3, 8, 32, 33, 64, 100])
@pytest.mark.parametrize("op", ["wkv6", "ssd"])
@pytest.mark.parametrize("backend", ["cpp", "chunked"])
def test_any_head_size_works(op, size, backend):
    errors = parity.compare(op, backend, parity.ParityCase(op, 37).inputs(head_size=size))
    assert all(error <= 1e-5 for error in errors.values()), errors


class DropsTheGradientOfTheFinalState(torch.autograd.Function):
    """The defect of a public kernel: correct forward, and a backward pass that never reads dS_T."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return reference.wkv6_reference(*inputs)

    @staticmethod
    def backward(ctx, dy, dfinal):
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            y, final = reference.wkv6_reference(*leaves)
            return torch.autograd.grad([y, final], leaves, [dy, torch.zeros_like(dfinal)])


def public(function):
    """Takes the inputs by the names of the public operation, in its order."""
    return lambda **inputs: function(*inputs.values())


def reads_the_updated_state(r, k, v, log_w, u, state):
    y, final = reference.wkv6_reference(r, k, v, log_w, u, state)
    return y + torch.einsum("bthk,bthk,bthv->bthv", r, k, v), final


def clamps_the_decay(r, k, v, log_w, u, state):
    return reference.wkv6_reference(r, k, v, log_w.clamp(min=-5.0), u, state)


def transposes_the_state(r, k, v, log_w, u, state):
    y, final = reference.wkv6_reference(r, k, v, log_w, u, state)
    return y, final.mT


@pytest.mark.parametrize(
    ("wrong", "decays", "caught"),
    [
        (DropsTheGradientOfTheFinalState.apply, "typical", "grad k_BTHK"),
        (DropsTheGradientOfTheFinalState.apply, "typical", "grad initial_state_BHKV"),
        (reads_the_updated_state, "typical", "y"),
        (clamps_the_decay, "strong", "grad log_w_BTHK"),
        (transposes_the_state, "typical", "final_state"),
    ],
)
def test_a_wrong_kernel_is_caught(wrong, decays, caught):
    inputs = parity.ParityCase("wkv6", 16, decays).inputs(head_size=8)
    assert not parity.errors_of(public(wrong), "wkv6", inputs)[caught] <= 1e-3
    right = parity.errors_of(public(reference.wkv6_reference), "wkv6", inputs)
    assert right[caught] <= 1e-5


def test_dropping_the_gradient_of_the_final_state_leaves_the_outputs_right():
    """The control must fail for its one defect, not because it is wrong everywhere."""
    inputs = parity.ParityCase("wkv6", 16).inputs(head_size=8)
    errors = parity.errors_of(public(DropsTheGradientOfTheFinalState.apply), "wkv6", inputs)
    assert errors["y"] <= 1e-5
    assert errors["final_state"] <= 1e-5
    assert errors["grad r_BTHK"] <= 1e-5


def forgets_the_mean(logits, targets):
    return reference.cross_entropy_reference(logits, targets) * len(targets)


def leaves_out_rows(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets, ignore_index=int(targets[0]))


@pytest.mark.parametrize("wrong", [forgets_the_mean, leaves_out_rows])
def test_a_wrong_loss_is_caught(wrong):
    inputs = parity.ParityCase("cross_entropy", 16).inputs(head_size=8)
    errors = parity.errors_of(public(wrong), "cross_entropy", inputs)
    assert not errors["y"] <= 1e-3
    assert not errors["grad logits_NV"] <= 1e-3


def gates_after_the_norm(x, z, weight):
    return reference.rms_norm_reference(x, weight, 1e-5) * torch.nn.functional.silu(z)


def normalises_without_gradient(x, z, weight):
    gated = x * torch.nn.functional.silu(z)
    return gated / torch.sqrt(gated.detach().square().mean(-1, keepdim=True) + 1e-5) * weight


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (gates_after_the_norm, "y"),
        (normalises_without_gradient, "grad x_BTD"),
        (normalises_without_gradient, "grad z_BTD"),
    ],
)
def test_a_wrong_norm_is_caught(wrong, caught):
    inputs = parity.ParityCase("gated_rms_norm", 16).inputs(head_size=8)
    assert not parity.errors_of(public(wrong), "gated_rms_norm", inputs)[caught] <= 1e-3


def test_every_length_meets_every_kind_of_decay_but_the_longest():
    seen = {(case.length, case.decays) for case in parity.parity_cases("ssd")}
    missing = {(length, kind) for length in parity.LENGTHS for kind in parity.DECAYS} - seen
    assert {length for length, _ in missing} == {1000}
    assert {kind for length, kind in seen if length == 1000} == {"typical", "near_one"}


def test_rms_error_known_answers():
    expected = torch.tensor([3.0, 4.0])
    assert parity.rms_error(expected, expected) == 0
    assert parity.rms_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert parity.rms_error(2 * expected, expected) == pytest.approx(1.0)
    assert parity.rms_error(torch.zeros(2), torch.zeros(2)) == 0
    assert parity.rms_error(expected, torch.zeros(2)) == float("inf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rms_error_of_anything_not_finite_passes_no_limit(bad):
    broken, fine = torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0])
    assert not parity.rms_error(broken, fine) <= 1e30
    assert not parity.rms_error(fine, broken) <= 1e30
    name, value = parity.worst({"y": 5.0, "final_state": parity.rms_error(broken, fine)})
    assert name == "final_state"
    assert value != value


def test_rms_error_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"shape \[2, 1\] with the expected \[2\]"):
        parity.rms_error(torch.zeros(2, 1), torch.zeros(2))


def test_many_errors_are_what_each_is_alone():
    expected = {"y": torch.tensor([3.0, 4.0]), "final_state": torch.zeros(2), "grad x": torch.tensor([1.0])}
    actual = {"grad x": torch.tensor([math.nan]), "y": torch.tensor([3.0, 4.5]), "final_state": torch.ones(2)}
    found = parity.rms_errors(actual, expected)
    assert list(found) == list(expected)
    assert (found["y"], found["final_state"]) == (pytest.approx(0.1), math.inf)
    assert math.isnan(found["grad x"])


def drops_a_position(r, k, v, log_w, u, state):
    y, final = reference.wkv6_reference(r, k, v, log_w, u, state)
    return y[:, 1:], final


def test_an_output_of_another_shape_is_refused():
    inputs = parity.ParityCase("wkv6", 4).inputs(head_size=8)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 2, 8\] with the expected \[2, 4, 2, 8\]"):
        parity.errors_of(public(drops_a_position), "wkv6", inputs)


def test_inputs_are_the_same_every_time_and_differ_by_length():
    make = functools.partial(parity.ParityCase, "wkv6")
    assert torch.equal(make(5).inputs()["r_BTHK"], make(5).inputs()["r_BTHK"])
    assert not torch.equal(make(5).inputs()["u_HK"], make(6).inputs()["u_HK"])
