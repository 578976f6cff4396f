"""Run mamba-ssm's own Triton kernels on the CPU, in Triton's interpreter, and print what was found as JSON.

In a process of its own: Triton must find ``TRITON_INTERPRET`` when it is imported, and two functions of torch.cuda
that the package asks are replaced. The interpreter computes in NumPy: exact fp32, and nothing else.
"""

import contextlib
import json
import os
import sys
from functools import partial
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

import torch
from package_doubles import StrictConv1d
from torch.nn import functional as F

from kernels import api, backends, parity
from kernels.packages import conv1d, mamba2, ssd
from models.blocks.mamba2 import Mamba2Mixer
from models.config import Mamba2Config

# Multiprocessors: how many partial sums a backward pass keeps. Few, so that there are several of each
PROCESSORS = 3
DECAYS = ("typical", "forget_all", "strong", "near_one", "mixed")


def parity_of_ssd(length, decays):
    """Errors against the fp64 oracle: outputs, states and all gradients."""
    inputs = parity.ParityCase("ssd", length, decays).inputs(head_size=32)

    def through_the_package(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, initial_state_BHPN):
        return ssd.ssd_mamba_ssm(x_BTHP, dt_BTH, A_H, B_BTGN, C_BTGN, initial_state_BHPN)

    return parity.errors_of(through_the_package, "ssd", inputs)


def in_chunks_of_64():
    """The same in the chunks that 16 bits get."""
    chunk_length, ssd.chunk_length = ssd.chunk_length, lambda T, dtype: 64
    errors = parity_of_ssd(130, "mixed")
    ssd.chunk_length = chunk_length
    return errors


def groups():
    """The same where heads share B and C in groups, and where neither P nor N is a power of two."""
    generator = torch.Generator().manual_seed(0)
    shape = {"B": 2, "T": 35, "H": 6, "P": 12, "G": 3, "N": 20}

    def normal(letters):
        return torch.randn([shape[letter] for letter in letters], generator=generator)

    inputs = {
        "x_BTHP": normal("BTHP"),
        "dt_BTH": 0.1 * normal("BTH").abs(),
        "A_H": -normal("H").abs(),
        "B_BTGN": normal("BTGN"),
        "C_BTGN": normal("BTGN"),
        "initial_state_BHPN": normal("BHPN"),
    }
    return parity.errors_of(lambda **given: ssd.ssd_mamba_ssm(*given.values()), "ssd", inputs)


def split_and_carry():
    """Errors of two calls with the state carried between them against one: outputs, state, and all gradients."""
    inputs = parity.ParityCase("ssd", 70).inputs(head_size=16)
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]
    x, dt, A, B, C, initial = tensors

    def part(begin, end, state):
        return ssd.ssd_mamba_ssm(x[:, begin:end], dt[:, begin:end], A, B[:, begin:end], C[:, begin:end], state)

    head, carried = part(0, 27, initial)
    tail, final = part(27, 70, carried)
    whole, whole_final = part(0, 70, initial)
    loss = head.square().mean() + tail.square().mean() + final.square().mean()
    whole_loss = whole[:, :27].square().mean() + whole[:, 27:].square().mean() + whole_final.square().mean()
    errors = {"y": (torch.cat([head, tail], 1), whole), "final_state": (final, whole_final)}
    pairs = zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(whole_loss, tensors), strict=True)
    errors |= {f"grad {name}": pair for name, pair in zip(inputs, pairs, strict=True)}
    return {name: parity.rms_error(*pair) for name, pair in errors.items()}


def one_gradient(which):
    """Errors where a loss reads the output alone or the final state alone."""
    inputs = parity.ParityCase("ssd", 70).inputs(head_size=16)
    found = []
    for dtype, function in ((torch.float32, ssd.ssd_mamba_ssm), (torch.float64, None)):
        given = [tensor.to(dtype).requires_grad_() for tensor in inputs.values()]
        with backends.force("ssd", "reference"):
            outputs = api.ssd(*given) if function is None else function(*given)
        loss = outputs[{"y": 0, "final_state": 1}[which]].square().sum()
        gradients = torch.autograd.grad(loss, given, allow_unused=True)
        found.append([torch.zeros_like(t) if g is None else g for t, g in zip(given, gradients, strict=True)])
    return {name: parity.rms_error(*pair) for name, *pair in zip(inputs, *found, strict=True)}


def registration():
    """Opcheck of each operation, which raises where something does not hold."""
    inputs = [t.requires_grad_() for t in parity.ParityCase("ssd", 2).inputs(head_size=16).values()]
    torch.library.opcheck(torch.ops.groundthink.ssd_mamba_ssm, inputs)
    outputs = torch.ops.groundthink.ssd_mamba_ssm(*inputs)
    gradients = [torch.ones_like(output) for output in outputs]
    torch.library.opcheck(torch.ops.groundthink.ssd_mamba_ssm_backward, [t.detach() for t in (*inputs, *gradients)])
    arguments = [
        argument.detach().requires_grad_() if isinstance(argument, torch.Tensor) else argument
        for argument in mixer_arguments(mixer(), torch.randn(1, 2, 56))
    ]
    torch.library.opcheck(torch.ops.groundthink.mamba2_mamba_ssm, arguments)
    y, *kept = torch.ops.groundthink.mamba2_mamba_ssm(*arguments)
    without = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    gradients = [tensor.detach() for tensor in (*kept, torch.ones_like(y))]
    torch.library.opcheck(torch.ops.groundthink.mamba2_mamba_ssm_backward, [*without, *gradients])
    return {}


def mixer():
    """A small mixer with two groups; its projection has 54 columns."""
    torch.manual_seed(0)
    config = Mamba2Config(expand=1, head_dim=8, d_state=2, num_groups=2, conv_width=4)
    return Mamba2Mixer(16, config, num_residuals=2)


def mixer_arguments(of, projected):
    """Arguments of the fused operation."""
    parameters = (of.conv_weight, of.conv_bias, of.dt_bias, -torch.exp(of.A_log), of.D, of.norm_weight)
    return (projected.requires_grad_(), *parameters, 1e-5, of.head_dim, of.num_groups)


def fused():
    """Errors of the fused operation against its parts in fp64, on a projection padded as a GPU's is."""
    results = []
    used = sum(mixer().widths)
    for dtype in (torch.float32, torch.float64):
        of = mixer()
        with torch.no_grad():
            for parameter in of.parameters():  # far from where they start, so that each matters
                parameter.add_(0.3 * torch.randn(parameter.shape))
        of.to(dtype)
        projected = torch.randn(2, 40, used + -used % 8).to(dtype)
        arguments = mixer_arguments(of, projected)
        y = mamba2.mamba2_mamba_ssm(*arguments) if dtype == torch.float32 else parts(of, arguments)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        named = {"zxBCdt": projected, **{n: p for n, p in of.named_parameters() if "proj" not in n}}
        gradients = torch.autograd.grad((y * weight).sum(), list(named.values()))
        results.append({"y": y, **dict(zip(named, gradients, strict=True))})
    return {name: parity.rms_error(results[0][name], results[1][name]) for name in results[0]}


def parts(of, arguments):
    """What the fused operation stands for, operation by operation."""
    zxBCdt, weight, bias, dt_bias, A, D, norm_weight, eps, head_dim, groups = arguments
    with contextlib.ExitStack() as stack:
        for op in ("ssd", "causal_conv1d", "gated_rms_norm"):
            stack.enter_context(backends.force(op, "reference"))
        z, xBC, dt = torch.split(zxBCdt[..., : sum(of.widths)], of.widths, dim=-1)
        x, B, C = torch.split(api.causal_conv1d(xBC, weight, bias)[0], of.conv_widths, dim=-1)
        x = x.unflatten(-1, (-1, head_dim))
        B, C = B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
        y, _ = api.ssd(x, F.softplus(dt + dt_bias), A, B, C)
        return api.gated_rms_norm((y + D[:, None] * x).flatten(2), z, norm_weight, eps, groups)


class _SomeDevice(contextlib.nullcontext):
    """Stands in for ``torch.cuda.device``."""

    def __init__(self, index):
        super().__init__()


CHECKS = {
    **{f"T={T}": partial(parity_of_ssd, T, "typical") for T in (1, 2, 64)},
    **{f"T=65, {decays}": partial(parity_of_ssd, 65, decays) for decays in DECAYS},
    "T=130, strong": partial(parity_of_ssd, 130, "strong"),
    "T=130 in chunks of 64": in_chunks_of_64,
    "groups": groups,
    "split and carry": split_and_carry,
    "loss of the output": partial(one_gradient, "y"),
    "loss of the final state": partial(one_gradient, "final_state"),
    "fused": fused,
    "registration": registration,
}


def main():
    """Run every check, and print the errors it found as one line of JSON."""
    torch.cuda.device = _SomeDevice
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=PROCESSORS)
    double = StrictConv1d()
    conv1d._kernels = lambda: double
    mamba2.load()
    for name, check in CHECKS.items():
        sys.stdout.write(json.dumps({"check": name, "errors": check()}) + "\n")


if __name__ == "__main__":
    main()
