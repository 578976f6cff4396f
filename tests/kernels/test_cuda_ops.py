"""The CUDA operations as PyTorch sees them: on a GPU, and where there is none on the CPU emulator, binding included."""

import math
import subprocess
from pathlib import Path

import pytest
import torch
from emulated_wkv6 import CHUNK, EMULATOR, SOURCES

from kernels import backends, jit_build, parity
from kernels.cuda import ops
from kernels.parity import ParityCase

HAS_GPU = torch.cuda.is_available()
# Relative RMS errors: see test_cuda_source.py
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")]


def load_emulated(directory):
    """The binding and all kernels on tensors of the CPU, under the names of the operations of CUDA."""
    library, of_torch = directory / "binding_emulated.so", Path(torch.__file__).parent
    headers = [f"-I{EMULATOR}", f"-I{SOURCES}", "-isystem", str(of_torch / "include")]
    command = [*jit_build.compiler(), "-std=c++20", "-O1", "-shared", "-fPIC", "-DGROUNDTHINK_EMULATED", *headers]
    command += ["-Wno-unknown-pragmas", str(EMULATOR / "binding_emulated.cpp"), "-o", str(library)]
    command += [f"-L{of_torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, jit_build.last_lines(done.stderr)
    torch.ops.load_library(str(library))
    ops.register_all()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cuda", marks=needs_gpu),
        pytest.param("cpu", marks=pytest.mark.skipif(HAS_GPU, reason="the GPU's operations have the same names")),
    ],
)
def device(request, tmp_path_factory):
    if request.param == "cuda":
        ops.load()
    elif jit_build.compiler_version() is None:
        pytest.skip("no C++ compiler found: install g++ or set CXX")
    else:
        load_emulated(tmp_path_factory.mktemp("emulated"))
    return request.param


def wkv6_inputs(device, T=2 * CHUNK + 3, dtype=torch.float32, head_size=32, decays="mixed", requires_grad=False):
    inputs = ParityCase("wkv6", T, decays).inputs(head_size=head_size, dtype=dtype, device=device)
    for name in ("log_w_BTHK", "u_HK", "initial_state_BHKV"):
        inputs[name] = inputs[name].float()
    return {name: tensor.requires_grad_(requires_grad) for name, tensor in inputs.items()}


def loss_inputs(device, dtype=torch.float32, requires_grad=False):
    inputs = ParityCase("cross_entropy", 9).inputs(dtype=dtype, device=device)
    inputs["logits_NV"].requires_grad_(requires_grad)
    return tuple(inputs.values())


def by_name(function):
    """Takes the inputs by the names of the public operation, in its order."""
    return lambda **inputs: function(*inputs.values())


@DTYPES
@pytest.mark.parametrize("head_size", [32, 64])
def test_wkv6_agrees_with_the_oracle(device, dtype, head_size):
    inputs = wkv6_inputs(device, dtype=dtype, head_size=head_size)
    errors = parity.errors_of(by_name(ops.wkv6_cuda), "wkv6", inputs)
    assert parity.worst(errors)[1] <= LIMITS[dtype], errors


@DTYPES
def test_cross_entropy_agrees_with_the_oracle(device, dtype):
    inputs = ParityCase("cross_entropy", 65).inputs(dtype=dtype, device=device)
    errors = parity.errors_of(by_name(ops.cross_entropy_cuda), "cross_entropy", inputs)
    assert errors["y"] <= 1e-6
    assert errors["grad logits_NV"] <= max(LIMITS[dtype], 1e-6), errors


@DTYPES
@pytest.mark.parametrize("keep", [True, False])
def test_registration_of_wkv6_holds(device, dtype, keep):
    inputs = wkv6_inputs(device, dtype=dtype, requires_grad=keep)
    torch.library.opcheck(torch.ops.groundthink.wkv6_cuda.default, (*inputs.values(), keep))


@DTYPES
def test_registration_of_the_backward_pass_of_wkv6_holds(device, dtype):
    inputs = wkv6_inputs(device, dtype=dtype)
    y, final, checkpoints, scores = torch.ops.groundthink.wkv6_cuda(*inputs.values(), True)
    given = (*list(inputs.values())[:-1], checkpoints, scores)
    for gradients in ((torch.ones_like(y), torch.ones_like(final)), (torch.ones_like(y), None)):
        torch.library.opcheck(torch.ops.groundthink.wkv6_cuda_backward.default, (*given, *gradients))


@DTYPES
def test_registration_of_cross_entropy_holds(device, dtype):
    op = torch.ops.groundthink.cross_entropy_cuda.default
    torch.library.opcheck(op, loss_inputs(device, dtype, requires_grad=True))
    inputs = loss_inputs(device, dtype)
    loss, stats = op(*inputs)
    backward = torch.ops.groundthink.cross_entropy_cuda_backward.default
    torch.library.opcheck(backward, (*inputs, stats, torch.ones_like(loss)))


def test_only_what_a_backward_pass_will_read_is_kept(device):
    inputs = wkv6_inputs(device).values()
    y, final, checkpoints, scores = torch.ops.groundthink.wkv6_cuda(*inputs, True)
    without = torch.ops.groundthink.wkv6_cuda(*inputs, False)
    assert checkpoints.numel() > 0 < scores.numel()
    assert [t.numel() for t in without[2:]] == [0, 0]
    assert torch.equal(y, without[0])
    assert torch.equal(final, without[1])
    leaves = wkv6_inputs(device, requires_grad=True).values()
    with torch.no_grad():
        assert not ops.wkv6_cuda(*leaves)[0].requires_grad
    with pytest.raises(ValueError, match="checkpoints must be"):
        torch.ops.groundthink.wkv6_cuda(*leaves, False)[0].sum().backward()


@pytest.mark.parametrize("used", [0, 1])
def test_a_result_that_nothing_depends_on_sends_no_gradient(device, used):
    leaves = list(wkv6_inputs(device, requires_grad=True).values())
    results = ops.wkv6_cuda(*leaves)
    weights = [torch.zeros_like(results[0]), torch.zeros_like(results[1])]
    weights[used] = torch.randn_like(weights[used])
    expected = torch.autograd.grad(results, leaves, weights, retain_graph=True)
    actual = torch.autograd.grad(results[used], leaves, weights[used])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def shifted_in_memory(tensor):
    """Equal, contiguous, and not at a multiple of 16 bytes."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory[1:].view(tensor.shape).copy_(tensor)


def transposed_in_memory(tensor):
    return tensor.mT.contiguous().mT


@pytest.mark.parametrize("elsewhere", [shifted_in_memory, transposed_in_memory])
def test_where_the_inputs_lie_in_memory_does_not_matter(device, elsewhere):
    def results(change):
        outputs = []
        for op, inputs in (
            (ops.wkv6_cuda, wkv6_inputs(device).values()),
            (ops.cross_entropy_cuda, loss_inputs(device)),
        ):
            leaves = [change(t).requires_grad_() if t.is_floating_point() else t for t in inputs]
            made = op(*leaves)
            made = made if isinstance(made, tuple) else (made,)
            generator = torch.Generator().manual_seed(0)
            weights = [change(torch.randn(t.shape, generator=generator).to(t)) if t.dim() else None for t in made]
            outputs += [*made, *torch.autograd.grad(made, [t for t in leaves if t.requires_grad], weights)]
        return outputs

    expected, actual = results(torch.clone), results(elsewhere)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_second_derivative_raises(device):
    leaves = list(wkv6_inputs(device, requires_grad=True).values())
    gradient = torch.autograd.grad(ops.wkv6_cuda(*leaves)[0].square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


VALUES = ("r_BTHK", "k_BTHK", "v_BTHV")


def cut(tensor, last):
    return tensor[..., :last]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict.fromkeys(("r_BTHK", "k_BTHK", "log_w_BTHK", "u_HK"), lambda t: cut(t, 16)), "not K=16 and V=32"),
        (
            dict.fromkeys(("r_BTHK", "k_BTHK", "v_BTHV", "log_w_BTHK", "u_HK"), lambda t: cut(t, 24)),
            "not K=24 and V=24",
        ),
        (dict.fromkeys(VALUES, torch.Tensor.double), "not Double"),
        ({"k_BTHK": torch.Tensor.bfloat16}, "k must be Float"),
        ({"log_w_BTHK": torch.Tensor.half}, "log_w must be Float"),
        ({"u_HK": torch.Tensor.double}, "u must be Float"),
        ({"u_HK": lambda t: t[:1]}, r"u must be Float \[2, 32\], but is Float \[1, 32\]"),
        ({"initial_state_BHKV": torch.Tensor.bfloat16}, "initial must be Float"),
    ],
)
def test_wkv6_refuses_what_it_does_not_take(device, change, message):
    inputs = {name: change.get(name, torch.Tensor.clone)(tensor) for name, tensor in wkv6_inputs(device).items()}
    with pytest.raises(ValueError, match=message) as caught:
        ops.wkv6_cuda(*inputs.values())
    if "not " in message:
        assert "GROUNDTHINK_WKV6=chunked runs" in str(caught.value)


def test_cross_entropy_refuses_what_it_does_not_take(device):
    logits, targets = loss_inputs(device)
    with pytest.raises(ValueError, match="not Double; GROUNDTHINK_CROSS_ENTROPY=torch runs"):
        ops.cross_entropy_cuda(logits.double(), targets)
    with pytest.raises(ValueError, match=r"targets must be Long \[9\], but is Int \[9\]"):
        ops.cross_entropy_cuda(logits, targets.int())
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        ops.cross_entropy_cuda(logits[None], targets)


def test_a_graph_of_operations_is_traced_whole(device):
    def loss(*inputs):
        y, final = ops.wkv6_cuda(*inputs[:6])
        return ops.cross_entropy_cuda(y.flatten(0, 2) @ inputs[6], inputs[7]) + final.square().mean()

    leaves = list(wkv6_inputs(device, requires_grad=True).values())
    y, _ = ops.wkv6_cuda(*leaves)
    head = torch.ones(32, 5, device=device, requires_grad=True)
    targets = torch.zeros(y.numel() // 32, dtype=torch.int64, device=device)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = [
        [f(*leaves, head, targets), *torch.autograd.grad(f(*leaves, head, targets), [*leaves, head])]
        for f in (loss, compiled)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.fixture
def on_gpu():
    ops.load()


def all_results(op, inputs):
    leaves = {name: t.clone().requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    made = op(*leaves.values())
    made = made if isinstance(made, tuple) else (made,)
    loss = sum(t.float().square().sum() for t in made)
    return [*made, *torch.autograd.grad(loss, [t for t in leaves.values() if t.requires_grad])]


GPU_CASES = pytest.mark.parametrize(
    ("op", "inputs"),
    [
        pytest.param("wkv6", lambda: wkv6_inputs("cuda", T=257, dtype=torch.bfloat16, head_size=64), id="wkv6"),
        # few rows and many positions: cut into segments
        pytest.param("wkv6", lambda: wkv6_inputs("cuda", T=1000, dtype=torch.float16), id="wkv6-segments"),
        pytest.param(
            "cross_entropy",
            lambda: ParityCase("cross_entropy", 257).inputs(dtype=torch.bfloat16, device="cuda"),
            id="cross_entropy",
        ),
    ],
)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA GPU")
@pytest.mark.usefixtures("on_gpu")
class TestOnAGpu:
    @pytest.mark.parametrize("op", ["wkv6", "cross_entropy"])
    def test_the_operation_is_the_one_that_is_chosen(self, op):
        assert backends.select(op, "cuda").name == "cuda"

    @GPU_CASES
    def test_two_runs_are_equal_to_the_bit(self, op, inputs):
        function, given = getattr(ops, f"{op}_cuda"), inputs()
        first, second = all_results(function, given), all_results(function, given)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @GPU_CASES
    def test_a_captured_graph_gives_what_eager_calls_give(self, op, inputs):
        function, given = getattr(ops, f"{op}_cuda"), inputs()
        static = {name: tensor.clone() for name, tensor in given.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            all_results(function, static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = all_results(function, static)
        for round_number in range(2):
            changed = {n: t * 0.5**round_number if t.is_floating_point() else t for n, t in given.items()}
            for name, tensor in changed.items():
                static[name].copy_(tensor)
            graph.replay()
            expected = all_results(function, changed)
            assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))

    @GPU_CASES
    def test_every_output_is_written(self, op, inputs, monkeypatch):
        function, given = getattr(ops, f"{op}_cuda"), inputs()
        expected = all_results(function, given)
        torch.use_deterministic_algorithms(True)
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        try:
            assert torch.empty(3, device="cuda").isnan().all()
            poisoned = all_results(function, given)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(poisoned, expected, strict=True))

    def test_work_goes_to_the_current_stream(self):
        inputs = wkv6_inputs("cuda", T=257).values()
        expected = ops.wkv6_cuda(*inputs)[0]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            # a long wait in this stream only: a kernel in another stream would read the inputs before it
            torch.cuda._sleep(50_000_000)
            late = [tensor * 1 for tensor in inputs]
            actual = ops.wkv6_cuda(*late)[0]
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(actual, expected)

    @pytest.mark.parametrize("op", ["wkv6", "cross_entropy"])
    @DTYPES
    def test_the_public_operation_agrees_with_the_oracle(self, op, dtype):
        for length in (1, 65, 257):
            inputs = ParityCase(op, length, "mixed" if op == "wkv6" else "typical").inputs(dtype=dtype, device="cuda")
            errors = parity.compare(op, "cuda", inputs)
            assert parity.worst(errors)[1] <= LIMITS[dtype], errors

    def test_a_class_without_a_chance_gets_no_gradient(self):
        logits = torch.tensor([[0.0, -math.inf, 0.0]], device="cuda", requires_grad=True)
        loss = ops.cross_entropy_cuda(logits, torch.tensor([0], device="cuda"))
        loss.backward()
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
        torch.testing.assert_close(logits.grad.cpu(), torch.tensor([[-0.5, 0.0, 0.5]]), rtol=1e-6, atol=0)
