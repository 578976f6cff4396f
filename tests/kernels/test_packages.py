"""mamba-ssm and causal-conv1d: what is found of them, and our operations around their kernels, on stand-ins."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from package_doubles import StrictConv1d, StrictSelectiveScan
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels import backends, parity
from kernels.packages import conv1d, installed, inventory, mamba2, mamba_modules, selective_scan, ssd
from models.blocks.mamba2 import Mamba2Mixer, PaddedLinear
from models.config import Mamba2Config

PARTS = ("mamba_ssm", "selective_scan_cuda", "causal_conv1d_cuda", "triton", "einops")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Python's view of a machine with a GPU and without any of the packages; ``add`` writes a module."""

    def nothing(name):
        found = tmp_path / f"{name}.py", tmp_path / name / "__init__.py"
        there = [path for path in found if path.exists()]
        return SimpleNamespace(origin=str(there[0])) if there else None

    def add(name, text=""):
        (tmp_path / f"{name}.py").write_text(text)

    for part in PARTS:
        monkeypatch.delitem(sys.modules, part, raising=False)
    monkeypatch.setattr(installed.importlib.util, "find_spec", nothing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(installed, "version", lambda package: "1.2.3")
    monkeypatch.syspath_prepend(tmp_path)
    yield SimpleNamespace(add=add, folder=tmp_path)
    for part in PARTS:
        sys.modules.pop(part, None)


def row(part):
    return next(row for row in inventory() if row.part == part)


def test_what_is_not_installed_is_absent_and_says_how_to_install_it(machine):
    assert [row.part for row in inventory()] == list(PARTS)
    assert {row.kind for row in inventory()} == {"absent"}
    assert row("causal_conv1d_cuda").note == "not installed: docs/install.md says how to install it"
    for available in (installed.ssd_available, installed.causal_conv1d_available, installed.selective_scan_available):
        ok, why = available()
        assert not ok
        assert "not installed: docs/install.md" in why


def test_a_compiled_module_with_its_functions_is_real(machine):
    machine.add("selective_scan_cuda", "fwd = bwd = print")
    found = row("selective_scan_cuda")
    assert (found.kind, found.version, found.gives, found.note) == ("real", "1.2.3", "selective_scan", "")
    assert found.file == str(machine.folder / "selective_scan_cuda.py")
    assert installed.selective_scan_available() == (True, "mamba-ssm 1.2.3")


def test_a_stub_is_reported_as_a_stub_and_gives_nothing(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", ModuleType("selective_scan_cuda"))
    found = row("selective_scan_cuda")
    assert found.kind == "stub"
    assert found.note.startswith("a stub stands in for selective_scan_cuda: it has no fwd and no bwd")
    assert installed.selective_scan_available() == (False, found.note)


def test_a_module_built_for_another_torch_is_broken_and_keeps_the_linkers_words(machine):
    machine.add("causal_conv1d_cuda", "raise ImportError('undefined symbol: _ZN3c104impl')")
    found = row("causal_conv1d_cuda")
    assert found.kind == "broken"
    ok, why = installed.causal_conv1d_available()
    assert not ok
    assert "built for another PyTorch or CUDA" in why
    assert "undefined symbol: _ZN3c104impl; build it again" in why


def test_without_a_gpu_that_is_the_reason(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in ("mamba_ssm", "triton", "einops", "causal_conv1d_cuda"):
        machine.add(module, "raise AssertionError('nobody needs this here')")
    why = "mamba-ssm 1.2.3, Triton 1.2.3 is installed, but PyTorch sees no CUDA GPU"
    assert installed.ssd_available() == (False, why)
    assert installed.causal_conv1d_available()[1].endswith("PyTorch sees no CUDA GPU")


def test_asking_for_the_scan_imports_nothing(machine):
    for module in ("mamba_ssm", "triton", "einops"):
        machine.add(module, "raise AssertionError('this takes 8 s')")
    assert installed.ssd_available() == (True, "mamba-ssm 1.2.3, Triton 1.2.3")
    (machine.folder / "einops.py").unlink()
    assert installed.ssd_available() == (False, "einops is not installed: docs/install.md says how to install it")


def test_the_inventory_is_printed():
    run = subprocess.run([sys.executable, "-m", "kernels.packages"], capture_output=True, text=True, check=True)
    heading, *rows = run.stdout.splitlines()
    assert heading.split() == ["part", "version", "kind", "gives", "file", "note"]
    assert [line.split()[0] for line in rows] == list(PARTS)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package ``mamba_ssm`` whose ``__init__`` must not be executed."""
    folder = tmp_path / "mamba_ssm"
    (folder / "ops").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('executed')")
    (folder / "ops" / "__init__.py").touch()
    (folder / "ops" / "kernel.py").write_text("from mamba_ssm.ops import other\nNAME = __name__")
    (folder / "ops" / "other.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_modules_are_executed_without_the_package_and_leave_no_trace(package, monkeypatch):
    theirs = ModuleType("mamba_ssm")
    monkeypatch.setitem(sys.modules, "mamba_ssm", theirs)
    found = mamba_modules._import_apart(["ops.kernel"])
    assert found["ops.kernel"].NAME == "mamba_ssm.ops.kernel"
    assert [name for name in sys.modules if name.startswith("mamba_ssm")] == ["mamba_ssm"]
    assert sys.modules["mamba_ssm"] is theirs


def test_an_import_that_fails_leaves_no_trace_either(package):
    (package / "ops" / "kernel.py").write_text("import mamba_ssm.ops.missing")
    with pytest.raises(ModuleNotFoundError, match="missing"):
        mamba_modules._import_apart(["ops.kernel"])
    assert not [name for name in sys.modules if name.startswith("mamba_ssm")]


def test_kernels_that_are_not_known_are_refused():
    modules = {"ops.kernel": ModuleType("kernel")}
    with pytest.raises(backends.BackendError, match=r"mamba_ssm\.ops\.kernel has no _scan: .* not known here"):
        mamba_modules._known(modules, "ops.kernel", "_scan")


def test_every_kernel_that_must_be_launched_has_one_configuration_and_no_other():
    kernels_with_one = {kernel for module in mamba_modules.CONFIGS.values() for kernel in module}
    assert {name.strip("\\b") for name in backends.get("ssd", "mamba_ssm").launches} == kernels_with_one


@pytest.mark.parametrize(("op", "name"), [("causal_conv1d", "causal_conv1d"), ("selective_scan", "mamba_ssm")])
def test_a_backend_of_a_package_runs_on_a_gpu_only(op, name):
    assert backends.get(op, name).runs_on("cpu") == (False, "runs on cuda only, not on cpu")


@pytest.fixture
def conv(monkeypatch):
    double = StrictConv1d()
    monkeypatch.setattr(conv1d, "_kernels", lambda: double)
    conv1d.load()
    return double


@pytest.fixture
def scan(monkeypatch):
    double = StrictSelectiveScan()
    monkeypatch.setattr(selective_scan, "_kernels", lambda: double)
    selective_scan.load()
    return double


def convolve(x_BTC, weight_Cw, bias_C, initial_state_BCw):
    return conv1d.causal_conv1d_causal_conv1d(x_BTC, weight_Cw, bias_C, initial_state_BCw, "silu")


def run_scan(u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, D_C, initial_state_BCN):
    return selective_scan.selective_scan_mamba_ssm(u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, D_C, initial_state_BCN)


@pytest.mark.parametrize("head_size", [32, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 65])
def test_the_convolution_agrees_with_the_oracle(conv, length, head_size):
    errors = parity.errors_of(convolve, "causal_conv1d", parity.ParityCase("causal_conv1d", length).inputs(head_size))
    assert conv.calls == {"fwd": 1, "bwd": 1}
    assert all(error < 1e-6 for error in errors.values()), errors


@pytest.mark.parametrize("width", [2, 3, 4])
def test_every_width_that_the_kernels_have(conv, width):
    inputs = parity.ParityCase("causal_conv1d", 9).inputs(head_size=4)
    inputs["weight_Cw"] = inputs["weight_Cw"][:, :width]
    inputs["initial_state_BCw"] = inputs["initial_state_BCw"][:, :, : width - 1]
    errors = parity.errors_of(convolve, "causal_conv1d", inputs)
    assert all(error < 1e-6 for error in errors.values()), errors


@pytest.mark.parametrize(("begin", "channels", "columns"), [(8, 16, 40), (3, 16, 40), (8, 16, 37), (5, 13, 29)])
@pytest.mark.parametrize("length", [1, 7])
def test_a_slice_is_copied_only_where_its_layout_does_not_fit(conv, begin, channels, columns, length):
    wide = torch.randn(2, length, columns)
    x = wide[..., begin : begin + channels]
    taken = conv1d.channel_last(x, torch.float32)
    fits = (begin, channels, columns) == (8, 16, 40)
    assert (taken.data_ptr() == x.data_ptr()) == fits
    assert torch.equal(taken[:, :channels].transpose(1, 2), x)
    assert not taken[:, channels:].any()
    weight, bias, state = torch.randn(channels, 4), torch.randn(channels), torch.randn(2, channels, 3)
    y, final = convolve(x, weight, bias, state)
    same_y, same_final = kernels.causal_conv1d(x, weight, bias, state)
    torch.testing.assert_close(y, same_y)
    assert torch.equal(final, same_final)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_go_through_as_they_are_and_states_stay_in_fp32(conv, dtype):
    inputs = parity.ParityCase("causal_conv1d", 20).inputs(head_size=8)
    x = inputs["x_BTC"].to(dtype).requires_grad_()
    state = inputs["initial_state_BCw"].to(dtype).float().requires_grad_()
    y, final = convolve(x, inputs["weight_Cw"], inputs["bias_C"], state)
    assert (y.dtype, final.dtype) == (dtype, torch.float32)
    assert torch.equal(final, x[:, -3:].transpose(1, 2).float())
    dx, dstate = torch.autograd.grad(y.float().sum() + final.sum(), (x, state))
    assert (dx.dtype, dstate.dtype) == (dtype, torch.float32)


def test_a_loss_of_one_output_sends_gradients_from_it_alone(conv):
    inputs = parity.ParityCase("causal_conv1d", 2).inputs(head_size=4)
    x, weight, bias, state = (tensor.requires_grad_() for tensor in inputs.values())
    _, final = convolve(x, weight, bias, state)
    dx, dweight, dstate = torch.autograd.grad(final.sum(), (x, weight, state))
    assert dx.eq(1).all()  # both positions are in the final state, and one that was in the state before
    assert not dweight.any()
    assert dstate.sum((0, 1)).tolist() == [0, 0, dstate[..., 2].numel()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_Cw": torch.ones(8, 5), "initial_state_BCw": torch.ones(2, 8, 4)}, "not a width of 5; set GROUND"),
        ({"weight_Cw": torch.ones(8, 1), "initial_state_BCw": torch.ones(2, 8, 0)}, "not a width of 1; set GROUND"),
        ({"x_BTC": torch.ones(2, 6, 8, dtype=torch.float64)}, "not float64; set GROUNDTHINK_CAUSAL_CONV1D=shifted"),
    ],
)
def test_what_the_convolution_cannot_do_is_refused(conv, change, message):
    inputs = parity.ParityCase("causal_conv1d", 6).inputs(head_size=4) | change
    with pytest.raises(kernels.KernelInputError, match=message):
        convolve(**inputs)


def test_the_convolution_sums_in_a_fixed_order_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setitem(sys.modules, conv1d.MODULE, ModuleType(conv1d.MODULE))
    monkeypatch.delenv(conv1d._DETERMINISTIC, raising=False)
    conv1d._kernels.__wrapped__()
    assert conv1d.os.environ[conv1d._DETERMINISTIC] == "1"
    monkeypatch.setenv(conv1d._DETERMINISTIC, "0")
    conv1d._kernels.__wrapped__()
    assert conv1d.os.environ[conv1d._DETERMINISTIC] == "0"


@pytest.mark.parametrize("length", [1, 2, 64])
def test_the_selective_scan_has_both_states_by_steps_of_its_own(scan, length):
    errors = parity.errors_of(run_scan, "selective_scan", parity.ParityCase("selective_scan", length).inputs(4))
    assert scan.calls == {"fwd": 1, "bwd": 1}
    assert "grad initial_state_BCN" in errors
    assert all(error < 2e-6 for error in errors.values()), errors


def test_the_states_of_the_selective_scan_hold_where_nothing_is_forgotten(scan):
    inputs = parity.ParityCase("selective_scan", 5).inputs(4)
    errors = parity.errors_of(run_scan, "selective_scan", inputs | {"A_CN": torch.zeros_like(inputs["A_CN"])})
    assert all(error < 2e-6 for error in errors.values()), errors


def test_the_states_of_the_selective_scan_hold_where_all_is_forgotten(scan):
    inputs = parity.ParityCase("selective_scan", 5).inputs(4)
    leaves = inputs | {"A_CN": torch.full_like(inputs["A_CN"], -1e6).requires_grad_()}
    y, final = run_scan(**leaves)
    with backends.force("selective_scan", "reference"):
        same_y, same_final = kernels.selective_scan(**leaves)
    torch.testing.assert_close((y, final), (same_y, same_final))
    (dA,) = torch.autograd.grad(y.sum() + final.sum(), leaves["A_CN"])
    assert dA.abs().max() < 1e-15, "no position can tell the rate"


def test_what_the_selective_scan_cannot_do_is_refused(scan):
    inputs = parity.ParityCase("selective_scan", 3).inputs(4)
    with pytest.raises(kernels.KernelInputError, match="not float64; set GROUNDTHINK_SELECTIVE_SCAN=reference"):
        run_scan(**{name: tensor.double() for name, tensor in inputs.items()})
    wide = {name: torch.ones(*inputs[name].shape[:-1], 257) for name in ("A_CN", "B_BTN", "C_BTN", "initial_state_BCN")}
    with pytest.raises(kernels.KernelInputError, match="N up to 256 in float32, not N=257"):
        run_scan(**(inputs | wide))


def test_registration_of_the_convolution_holds(conv):
    inputs = [*parity.ParityCase("causal_conv1d", 5).inputs(head_size=3).values(), True]
    leaves = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in inputs]
    torch.library.opcheck(torch.ops.groundthink.causal_conv1d_causal_conv1d, leaves)
    without = [t.detach() if isinstance(t, torch.Tensor) else t for t in leaves]
    ones = [torch.ones_like(t) for t in torch.ops.groundthink.causal_conv1d_causal_conv1d(*without)]
    torch.library.opcheck(torch.ops.groundthink.causal_conv1d_causal_conv1d_backward, [*without, *ones])
    torch.library.opcheck(torch.ops.groundthink.causal_conv1d_causal_conv1d_backward, [*without, ones[0], None])


def test_registration_of_the_selective_scan_holds(scan):
    u, delta, A, B, C, D, _ = parity.ParityCase("selective_scan", 5).inputs(head_size=3).values()
    inputs = [u.mT.contiguous(), delta.mT.contiguous(), A, B.mT.contiguous(), C.mT.contiguous(), D]
    torch.library.opcheck(torch.ops.groundthink.selective_scan_mamba_ssm, [t.requires_grad_() for t in inputs])
    without = [t.detach() for t in inputs]
    y, kept = torch.ops.groundthink.selective_scan_mamba_ssm(*without)
    backward = torch.ops.groundthink.selective_scan_mamba_ssm_backward
    torch.library.opcheck(backward, [*without, kept, torch.ones_like(y)])


def test_a_second_derivative_raises(conv):
    leaves = [t.requires_grad_() for t in parity.ParityCase("causal_conv1d", 5).inputs(head_size=4).values()]
    y, _ = convolve(*leaves)
    gradient = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 4, 2, 8), torch.float64, "not compute in float64; pass float32, or set GROUNDTHINK_SSD=chunked"),
        ((70000, 1, 1, 1), torch.bfloat16, "70000 rows of 1 positions are 70000 chunks, and mamba-ssm takes 65535"),
    ],
)
def test_what_the_scan_cannot_do_is_refused(shape, dtype, message):
    B, T, H, P = shape
    with pytest.raises(kernels.KernelInputError, match=message):
        ssd.ssd_mamba_ssm(
            torch.ones(shape, dtype=dtype),
            torch.ones(B, T, H),
            -torch.ones(H),
            torch.ones(B, T, 1, 1),
            torch.ones(B, T, 1, 1),
            torch.ones(B, H, P, 1),
        )


@pytest.mark.parametrize("T", [1, 64, 512, 513, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_is_a_power_of_two_that_the_kernels_take(T, dtype):
    assert ssd.chunk_length(T, dtype) in (16, 32, 64, 128, 256)


@pytest.fixture
def gpu(monkeypatch):
    """Modules and tensors without values, on a GPU that is not there, where the packages run."""
    chosen = {"causal_conv1d": "causal_conv1d", "ssd": "mamba_ssm"}
    monkeypatch.setattr(
        backends, "select", lambda op, device: backends.Choice(op, chosen.get(op, "torch"), "chosen for this test")
    )
    counted = []
    monkeypatch.setattr(backends, "function_of", lambda backend: counted.append((backend.op, backend.name)) or print)
    monkeypatch.setattr(conv1d, "load", lambda: None)
    monkeypatch.setattr(ssd, "load", lambda: None)
    mamba2.load()
    # random numbers of an initialisation and gradients need the GPU itself
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *bounds, **options: tensor)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        yield counted


def make_mixer(num_heads=6):
    config = Mamba2Config(expand=2, head_dim=8, d_state=4, num_groups=1, conv_width=4)
    return Mamba2Mixer(4 * num_heads, config, num_residuals=2)


def test_without_a_state_the_mixer_is_one_operation_on_a_gpu(gpu):
    mixer = make_mixer()
    output = mixer(torch.randn(2, 64, 24, device="cuda"), keep_state=False)
    assert output.y.shape == (2, 64, 24)
    assert output.state == {}
    assert gpu == [("causal_conv1d", "causal_conv1d"), ("ssd", "mamba_ssm")]


@pytest.mark.parametrize("out_features", [902, 904])
def test_rows_of_a_projection_start_at_multiples_of_16_bytes_on_a_gpu(gpu, out_features):
    for device, columns in (("cpu", out_features), ("cuda", 904)):
        linear = PaddedLinear(24, out_features, bias=False, device=device)
        assert linear(torch.randn(2, 5, 24, device=device)).shape == (2, 5, columns)


@pytest.mark.parametrize("op", ["causal_conv1d", "ssd", "gated_rms_norm"])
def test_a_part_that_is_planted_or_chosen_otherwise_runs_by_itself(gpu, monkeypatch, op):
    projected = torch.randn(2, 64, 904, device="cuda", dtype=torch.bfloat16)
    assert kernels.fuses_mamba2(projected, 384, 512)
    unfilled = torch.randn(2, 63, 904, device="cuda", dtype=torch.bfloat16)
    assert not kernels.fuses_mamba2(unfilled, 384, 512), "the last chunk has room"
    with backends.wrap(op, lambda kernel: kernel):
        assert not kernels.fuses_mamba2(projected, 384, 512)
    with backends.force(op, "reference"):
        assert not kernels.fuses_mamba2(projected, 384, 512)
    select = backends.select
    other = {op: backends.Choice(op, "reference", "another choice")}
    monkeypatch.setattr(backends, "select", lambda name, device: other.get(name) or select(name, device))
    assert not kernels.fuses_mamba2(projected, 384, 512)


@pytest.mark.parametrize(
    ("device", "dtype", "columns", "inner", "channels"),
    [
        ("cpu", torch.float32, 904, 384, 512),
        ("cuda", torch.float64, 904, 384, 512),
        ("cuda", torch.float32, 904, 384, 508),
        ("cuda", torch.float32, 904, 380, 512),
        ("cuda", torch.float32, 902, 384, 512),
    ],
)
def test_what_the_one_operation_does_not_take_runs_part_by_part(gpu, device, dtype, columns, inner, channels):
    projected = torch.randn(2, 5, columns, device=device, dtype=dtype)
    assert not kernels.fuses_mamba2(projected, inner, channels)


def test_a_projection_that_does_not_hold_its_parts_is_refused(gpu):
    mixer = make_mixer()
    A = -torch.exp(mixer.A_log)
    parameters = (mixer.conv_weight, mixer.conv_bias, mixer.dt_bias, A, mixer.D, mixer.norm_weight)
    with pytest.raises(kernels.KernelInputError, match=r"mamba2: J=100 columns must hold z \(I=48\), xBC \(C=56\)"):
        kernels.mamba2(torch.randn(2, 5, 100, device="cuda"), *parameters, 1e-5, 1)
    with pytest.raises(kernels.KernelInputError, match="J=110, I=48 and C=56 must be multiples of 8; pad the proj"):
        kernels.mamba2(torch.randn(2, 5, 110, device="cuda"), *parameters, 1e-5, 1)
