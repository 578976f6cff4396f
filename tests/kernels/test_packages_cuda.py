"""The operations on mamba-ssm and causal-conv1d where they run: parity, the same bits, capture in a CUDA graph."""

import pytest
import torch
from torch.nn import functional as F

import kernels
from kernels import backends, parity
from models.blocks.mamba2 import Mamba2Mixer
from models.config import Mamba2Config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

OPS = {"ssd": "mamba_ssm", "causal_conv1d": "causal_conv1d", "selective_scan": "mamba_ssm"}
# Relative to the RMS of what is expected. What is rounded to 16 bits is off by their precision
WITHIN = {torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float16: 5e-3}
# The states of the scan are kept in 16 bits between chunks, and their gradients are sums of such
WITHIN_OF_STATES = 1e-2


@pytest.fixture(autouse=True)
def _installed():
    for op, name in OPS.items():
        ok, why = backends.get(op, name).available()
        if not ok:
            pytest.skip(why)


def on_gpu(case, dtype, head_size=64):
    return case.inputs(head_size=head_size, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", list(WITHIN))
@pytest.mark.parametrize("length", [1, 2, 65, 257])
@pytest.mark.parametrize("op", OPS)
def test_outputs_states_and_gradients_agree_with_the_oracle(op, length, dtype):
    errors = parity.compare(op, OPS[op], on_gpu(parity.ParityCase(op, length), dtype))
    assert all(error < max(WITHIN[dtype], WITHIN_OF_STATES * (dtype != torch.float32)) for error in errors.values())
    assert errors["y"] < WITHIN[dtype]


@pytest.mark.parametrize("decays", parity.DECAYS)
def test_the_scan_agrees_at_extreme_decays(decays):
    errors = parity.compare("ssd", "mamba_ssm", on_gpu(parity.ParityCase("ssd", 128, decays), torch.float32))
    assert all(error < WITHIN[torch.float32] for error in errors.values()), errors


def mixer(num_heads=6):
    torch.manual_seed(0)
    config = Mamba2Config(expand=2, head_dim=64, d_state=64, num_groups=1, conv_width=4)
    return Mamba2Mixer(32 * num_heads, config, num_residuals=2).cuda()


def pass_through(of, u, keep_state):
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=u.dtype == torch.bfloat16):
        y = of(u.float(), keep_state=keep_state).y
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad((y * weight).sum(), list(of.parameters()))]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("num_heads", [6, 8])
def test_one_operation_is_its_parts(num_heads, dtype, within):
    of = mixer(num_heads)
    u = torch.randn(3, 192, 32 * num_heads, device="cuda").to(dtype)  # whole chunks
    before = backends.calls.copy()
    fused = pass_through(of, u, keep_state=False)
    assert (backends.calls - before).keys() == {("ssd", "mamba_ssm"), ("causal_conv1d", "causal_conv1d")}
    parts = pass_through(of, u, keep_state=True)
    names = ["y", *dict(of.named_parameters())]
    errors = {name: parity.rms_error(*pair) for name, *pair in zip(names, fused, parts, strict=True)}
    assert all(error < within for error in errors.values()), errors


@pytest.mark.parametrize("keep_state", [False, True])
def test_two_passes_give_the_same_bits(keep_state):
    of, u = mixer(), torch.randn(8, 256, 192, device="cuda", dtype=torch.bfloat16)
    first, again = pass_through(of, u, keep_state), pass_through(of, u, keep_state)
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("keep_state", [False, True])
def test_a_captured_pass_gives_the_bits_of_an_eager_one(keep_state):
    of, u = mixer(), torch.randn(2, 256, 192, device="cuda")
    parameters = list(of.parameters())

    def work():
        y = of(u, keep_state=keep_state).y
        return [y, *torch.autograd.grad(y.square().sum(), parameters)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = work()
    u.copy_(torch.randn_like(u))
    graph.replay()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # where autograd has its accumulators
        again = work()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, again))


@pytest.mark.parametrize("op", ["ssd", "causal_conv1d"])
def test_registration_holds(op):
    inputs = [t.requires_grad_() for t in on_gpu(parity.ParityCase(op, 40), torch.float32).values()]
    function = backends.function_of(backends.get(op, OPS[op]))
    assert function is not None
    if op == "ssd":
        torch.library.opcheck(torch.ops.groundthink.ssd_mamba_ssm, inputs)
    else:
        torch.library.opcheck(torch.ops.groundthink.causal_conv1d_causal_conv1d, [*inputs, True])


def test_the_projection_is_padded_and_the_weights_are_not():
    of = mixer()
    columns = sum(of.widths)
    assert columns % 8
    u = torch.randn(2, 5, 192, device="cuda")
    padded = of.in_proj(u)
    assert padded.shape[-1] == columns + 2
    assert not padded[..., columns:].any()
    torch.testing.assert_close(padded[..., :columns], F.linear(u, of.in_proj.weight))


def test_fp32_is_fp32():
    inputs = on_gpu(parity.ParityCase("ssd", 128), torch.float32)
    y = {}
    for name in ("mamba_ssm", "reference"):
        with backends.force("ssd", name):
            y[name], _ = kernels.ssd(*inputs.values())
    # TF32 would be off by 3e-4
    assert parity.rms_error(y["mamba_ssm"], y["reference"]) < 5e-6
