"""Inputs that do not fit are refused with words; dtypes come back as promised."""

import pytest
import torch

import kernels
from kernels import backends, parity

ALL = [(op, name) for op in backends.OPS for name in backends.names(op, "cpu")]
WITH_STATE = [(op, name) for op, name in ALL if op in parity.OPS_WITH_STATE]


def outputs_of(results):
    """What an operation returns, as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def leaves_of(inputs):
    """The inputs, and those of them that collect gradients."""
    given = {name: tensor.detach().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}
    return given, [tensor for tensor in given.values() if tensor.requires_grad]


def inputs_with(op, **changes):
    inputs = parity.ParityCase(op, 6).inputs(head_size=4)
    return inputs | {name: change(inputs[name]) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("wkv6", {"v_BTHV": lambda t: t[:, :5]}, r"wkv6: v_BTHV has T=5 \(shape .*\), but r_BTHK has T=6"),
        ("wkv6", {"u_HK": lambda t: t[:, :1]}, "wkv6: u_HK has K=1 .*, but r_BTHK has K=4"),
        ("wkv6", {"u_HK": lambda t: t[0]}, r"wkv6: u_HK must have 2 dimensions \[H, K\], but its shape is \[4\]"),
        ("wkv6", {"initial_state_BHKV": lambda t: t[:1]}, "initial_state_BHKV has B=1 .*, but r_BTHK has B=2"),
        ("wkv6", {"r_BTHK": lambda t: t.long()}, "r_BTHK must be floating point, but is torch.int64"),
        ("wkv6", {"k_BTHK": lambda t: t.to("meta")}, "k_BTHK is on meta and r_BTHK on cpu; move both to one device"),
        ("wkv6", {"log_w_BTHK": torch.neg}, "log_w_BTHK must not be positive, but its largest value is .*logarithm"),
        ("wkv6", {"r_BTHK": lambda t: t[:, :0]}, "r_BTHK has shape .*; T must be at least 1"),
        ("ssd", {"A_H": torch.neg}, r"ssd: A_H must not be positive.*pass -exp\(A_log\)"),
        ("ssd", {"dt_BTH": torch.neg}, r"a step is at least 0: pass softplus\(dt \+ dt_bias\)"),
        ("causal_conv1d", {"initial_state_BCw": lambda t: t[..., 1:]}, r"\[B, C, w-1\] = \[2, 8, 3\], but is .*2\]"),
        ("selective_scan", {"A_CN": torch.neg}, "selective_scan: A_CN must not be positive"),
        ("cross_entropy", {"logits_NV": lambda t: t[0]}, r"logits_NV must have 2 dimensions \[N, V\]"),
        (
            "cross_entropy",
            {"targets_N": lambda t: t[1:]},
            r"targets_N must be int64 \[N\] = \[6\] on cpu, .* \[5\] on cpu",
        ),
        ("cross_entropy", {"targets_N": lambda t: t.int()}, "targets_N must be int64 .*, but is torch.int32"),
        ("cross_entropy", {"targets_N": lambda t: t + 67}, r"targets must lie in 0 \.\. V-1 = 66, but range from"),
        ("cross_entropy", {"targets_N": lambda t: t.fill_(-100)}, "range from -100 to -100"),
        ("rms_norm", {"weight_D": lambda t: t[1:]}, "weight_D has D=7 .*, but x_BTD has D=8"),
        ("gated_rms_norm", {"z_BTD": lambda t: t[:, 1:]}, "z_BTD has T=5 .*, but x_BTD has T=6"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op, changes, message):
    with pytest.raises(kernels.KernelInputError, match=message):
        getattr(kernels, op)(**inputs_with(op, **changes))


def test_heads_that_groups_do_not_divide_are_refused():
    inputs = parity.ParityCase("ssd", 3).inputs(head_size=4)
    three = {name: inputs[name].repeat_interleave(3, dim=2) for name in ("B_BTGN", "C_BTGN")}
    with pytest.raises(kernels.KernelInputError, match="H=8 heads cannot share G=3 groups"):
        kernels.ssd(**inputs | three)


def test_an_unknown_activation_is_refused():
    with pytest.raises(kernels.KernelInputError, match="activation must be None or 'silu', but is 'gelu'"):
        kernels.causal_conv1d(**inputs_with("causal_conv1d"), activation="gelu")


@pytest.mark.parametrize("num_groups", [0, 3])
def test_groups_that_do_not_divide_the_width_are_refused(num_groups):
    with pytest.raises(kernels.KernelInputError, match=f"num_groups={num_groups} must divide D=8"):
        kernels.gated_rms_norm(**inputs_with("gated_rms_norm"), num_groups=num_groups)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "backend"), ALL)
def test_half_precision_is_computed_in_fp32(op, backend, dtype):
    made = parity.ParityCase(op, 40).inputs()
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in made.items()}
    given, leaves = leaves_of(inputs)
    in_fp32 = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
    with backends.force(op, backend):
        y, *final = outputs_of(getattr(kernels, op)(**given))
        exact_y, *exact_final = outputs_of(getattr(kernels, op)(**in_fp32))
    assert y.dtype == (torch.float32 if op == "cross_entropy" else dtype)
    assert torch.equal(y, exact_y.to(y.dtype))
    for one, exact in zip(final, exact_final, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, exact)
    gradients = torch.autograd.grad(sum(output.float().sum() for output in (y, *final)), leaves)
    assert {gradient.dtype for gradient in gradients} == {dtype}


@pytest.mark.parametrize(("op", "backend"), ALL)
def test_fp64_stays_fp64(op, backend):
    with backends.force(op, backend):
        outputs = outputs_of(getattr(kernels, op)(**parity.ParityCase(op, 6).inputs(dtype=torch.float64)))
    assert {output.dtype for output in outputs} == {torch.float64}


@pytest.mark.parametrize(("op", "backend"), WITH_STATE)
def test_no_initial_state_means_zeros(op, backend):
    inputs = parity.ParityCase(op, 6).inputs()
    state_name = list(inputs)[-1]
    zeros = inputs | {state_name: torch.zeros_like(inputs[state_name])}
    without = {name: tensor for name, tensor in inputs.items() if name != state_name}
    with backends.force(op, backend):
        for one, other in zip(getattr(kernels, op)(**zeros), getattr(kernels, op)(**without), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("which", ["y", "final_state"])
@pytest.mark.parametrize(("op", "backend"), WITH_STATE)
def test_a_loss_may_use_only_one_of_the_outputs(op, backend, which):
    def gradients(name, dtype):
        inputs = parity.ParityCase(op, 20).inputs(head_size=4, dtype=dtype)
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        with backends.force(op, name):
            y, final = getattr(kernels, op)(**leaves)
        loss = (y if which == "y" else final).square().sum()
        return torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)

    exact = gradients("reference", torch.float64)
    for actual, expected in zip(gradients(backend, torch.float32), exact, strict=True):
        assert parity.rms_error(actual, expected) <= 1e-5


@pytest.mark.parametrize(("op", "backend"), ALL)
def test_inputs_need_not_be_contiguous(op, backend):
    inputs = parity.ParityCase(op, 20).inputs(head_size=4)
    strided = {name: torch.stack([t, t], dim=-1)[..., 0] for name, t in inputs.items() if t.is_floating_point()}
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    errors = parity.errors_of(lambda **_: run_forced(op, backend, strided, _), op, inputs)
    assert all(error <= 1e-5 for error in errors.values()), errors


def run_forced(op, backend, strided, leaves):
    """Strided copies that still send their gradients to the leaves; integers are strided too."""
    other = {name: strided.get(name, leaf) for name, leaf in leaves.items()}
    with backends.force(op, backend):
        return getattr(kernels, op)(**{n: torch.stack([leaf, other[n]], -1)[..., 0] for n, leaf in leaves.items()})
