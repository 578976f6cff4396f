"""G0's detectors: what a profiler saw is matched with what was chosen, and every planted fault shows."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import toy_config

from fixtures.mutants.kernel import round_gradient_by_chance, run_the_reference
from harness.kernel_reality import (
    BlindProfilerError,
    execution_alone,
    executions,
    executions_in_training,
    expected_calls,
    failed_controls,
    forward_backward,
    is_deterministic,
    posing_stubs,
    profiled,
    traces_of,
)
from harness.sufficiency import wake
from kernels import backends
from kernels.parity import ParityCase
from models import get_model

VOCAB = 64
SCAN = r"\b_chunk_scan_fwd_kernel\b"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return wake(get_model("GF-MH", vocab_size=VOCAB)).eval()


@pytest.fixture
def tokens_BT():
    return torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def launching(monkeypatch):
    """``launching(op, *patterns)``: the chosen backend of ``op`` names device kernels, as those for a GPU do."""

    def change(op, *patterns):
        name = backends.select(op, "cpu").name
        rows = [
            # under another name: what a library of C++ operators shows is known by its own
            backends.Backend(op, "made_up", b.devices, b.load, b.available, b.native, patterns)
            if (b.op, b.name) == (op, name)
            else b
            for b in backends._TABLE
        ]
        monkeypatch.setattr(backends, "_TABLE", tuple(rows))
        backends.select.cache_clear()

    yield change
    backends.select.cache_clear()


def seeing(**counts):
    """A profiler that runs what it is given and reports these names."""

    def profiler(run, device):
        run()
        return Counter(counts)

    return profiler


def by_op(found):
    return {execution.op: execution for execution in found}


def test_every_layer_calls_the_operations_of_its_branches_and_the_loss_is_called_once(model):
    layers = len(model.layers)
    assert expected_calls(model) == {"wkv6": layers, "causal_conv1d": layers, "ssd": layers, "cross_entropy": 1}
    assert expected_calls(get_model("GPT2", vocab_size=VOCAB)) == {}


def test_the_profiler_of_a_cpu_sees_operators_by_name():
    def run():
        torch.ones(3).cumsum(0)
        torch.ones(3).cumsum(0)

    assert profiled(run, "cpu")["aten::cumsum"] == 2


@pytest.mark.skipif(backends.select("ssd", "cpu").name != "cpp", reason="needs a C++ compiler: install g++ or set CXX")
def test_the_profiler_sees_the_operators_of_the_library_that_is_called(model, tokens_BT):
    expected = expected_calls(model)
    for found in executions(model, tokens_BT, expected):
        assert set(found.seen) == {f"^groundthink::{found.op}$", f"^groundthink::{found.op}_backward$"}
        assert set(found.seen.values()) == {expected[found.op]}
        assert found.unseen == []
        assert (found.calls, found.reference_calls) == (expected[found.op], 0)
        assert f"groundthink::{found.op}_backward x{expected[found.op]}" in found.described


@pytest.mark.skipif(backends.select("ssd", "cpu").name != "cpp", reason="needs a C++ compiler: install g++ or set CXX")
def test_a_kernel_that_runs_the_reference_in_silence_is_counted_and_not_seen(model, tokens_BT):
    with backends.wrap("ssd", run_the_reference("ssd")):
        found = by_op(executions(model, tokens_BT, expected_calls(model)))
    assert (found["ssd"].calls, found["ssd"].reference_calls) == (len(model.layers), 0), "the counter believes it"
    assert len(found["ssd"].unseen) == 2
    assert found["ssd"].described == ""
    assert found["wkv6"].unseen == []


def test_an_update_of_a_training_is_looked_at_after_the_first_ones(model, launching):
    launching("ssd", SCAN)
    inputs = np.random.default_rng(0).integers(0, VOCAB, (2, 8)).astype(np.uint16)
    trained = copy.deepcopy(model)
    layers = len(model.layers)
    updates = []

    def profiler(run, device):
        updates.append(backends.calls["ssd", "made_up"])
        run()
        return Counter(_chunk_scan_fwd_kernel=layers)

    before = backends.calls["ssd", "made_up"]
    choice, [found] = executions_in_training(trained, toy_config(), (inputs, inputs), {"ssd": layers}, profiler)
    assert (choice.mode, choice.reason) == ("eager", "CUDA graphs need a GPU, and this is cpu")
    assert (found.calls, found.reference_calls, found.unseen) == (layers, 0, [])
    assert updates == [before + 3 * layers]


def test_plain_pytorch_leaves_no_trace_of_its_own():
    assert traces_of(backends.get("wkv6", "chunked"), "cuda") == ()
    assert traces_of(backends.get("wkv6", "chunked"), "cpu") == ()


def test_device_kernels_are_found_by_the_patterns_of_their_backend(model, tokens_BT, launching):
    launching("ssd", SCAN, r"\bssd_backward_kernel\b")
    layers = len(model.layers)
    seen = {
        "_chunk_scan_fwd_kernel": layers,
        "void ours::(anonymous namespace)::ssd_backward_kernel<float, (int)64>(float*, int)": layers - 1,
        "void ours::ssd_backward_kernel<float, 32>(float*, int)": 1,
        "void at::native::vectorized_elementwise_kernel<4>(int)": 900,
    }
    found = by_op(executions(model, tokens_BT, {"ssd": layers}, profiler=seeing(**seen)))["ssd"]
    assert (found.backend, found.unseen) == ("made_up", [])
    assert found.seen == {SCAN: layers, r"\bssd_backward_kernel\b": layers}
    assert found.names == {
        "_chunk_scan_fwd_kernel": layers,
        "ours::ssd_backward_kernel<float, 64>": layers - 1,
        "ours::ssd_backward_kernel<float, 32>": 1,
    }


def test_an_operation_that_no_model_calls_is_seen_by_itself(launching):
    launching("selective_scan", r"\bselective_scan_(fwd|bwd)_kernel\b")
    inputs = ParityCase("selective_scan", 5).inputs(8)
    found = execution_alone("selective_scan", inputs, "cpu", seeing(selective_scan_fwd_kernel=1))
    assert (found.calls, found.least, found.unseen) == (1, 1, [])
    assert execution_alone("selective_scan", inputs, "cpu", seeing(other=1)).unseen != []


def test_a_kernel_that_runs_in_all_layers_but_one_is_not_enough(model, tokens_BT, launching):
    launching("ssd", SCAN)
    layers = len(model.layers)
    [found] = executions(model, tokens_BT, {"ssd": layers}, profiler=seeing(_chunk_scan_fwd_kernel=layers - 1))
    assert found.unseen == [SCAN]


def test_a_profiler_that_saw_nothing_proves_nothing(model, tokens_BT, launching):
    launching("ssd", SCAN)
    with pytest.raises(BlindProfilerError, match=r"saw nothing run at all.*CUPTI"):
        executions(model, tokens_BT, {"ssd": 1}, profiler=seeing())


def test_kernels_are_looked_for_after_a_first_pass_that_compiles(model, tokens_BT):
    passes = []
    before = backends.calls["wkv6", backends.select("wkv6", "cpu").name]

    def profiler(run, device):
        passes.append(backends.calls["wkv6", backends.select("wkv6", "cpu").name] - before)
        run()
        return Counter({"something": 1})

    executions(model, tokens_BT, {"wkv6": 1}, profiler=profiler)
    assert passes == [len(model.layers)]


def test_a_pass_computes_what_a_training_does_in_its_dtype(model, tokens_BT):
    logits_BTV, loss, gradients = forward_backward(model, tokens_BT, torch.bfloat16)
    assert logits_BTV.dtype == torch.bfloat16
    exact_BTV, exact, exact_gradients = forward_backward(model, tokens_BT)
    assert exact_BTV.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=0.02)
    assert len(gradients) == len(exact_gradients) > 0


def test_all_controls_show_on_a_healthy_model(model, tokens_BT):
    assert failed_controls(model, tokens_BT, expected_calls(model)) == []


class Deaf(torch.nn.Module):
    """A model that answers whatever happens inside it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens_BT):
        try:
            return torch.nan_to_num(self.model(tokens_BT))
        except RuntimeError:
            return torch.zeros(*tokens_BT.shape, VOCAB) + sum(p.sum() * 0 for p in self.parameters())


def test_a_model_that_swallows_errors_and_nan_fails_two_controls(model, tokens_BT):
    missed = failed_controls(Deaf(model), tokens_BT, ["ssd"])
    assert missed == [
        "ssd: the kernel raised and the model went on",
        "ssd: the kernel wrote NaN, and logits and loss are finite",
    ]


def test_a_kernel_that_is_seen_while_the_reference_is_forced_fails_the_control(model, tokens_BT, launching):
    launching("ssd", SCAN)
    [missed] = failed_controls(model, tokens_BT, ["ssd"], profiler=seeing(_chunk_scan_fwd_kernel=4))
    assert missed == "ssd: the reference was forced and the profiler still saw _chunk_scan_fwd_kernel x4"


def test_the_counter_is_a_control_of_its_own(model, tokens_BT, monkeypatch):
    monkeypatch.setattr(backends, "calls", Counter())
    monkeypatch.setattr(backends, "function_of", lambda backend: backends._loaded(backend.op, backend.name))
    missed = failed_controls(model, tokens_BT, ["causal_conv1d"], profiler=seeing(any=1))
    assert "causal_conv1d: the reference was forced and the call counter did not show it" in missed


@pytest.mark.parametrize("poisoned", [False, True])
def test_two_passes_of_a_healthy_model_are_equal(model, tokens_BT, poisoned):
    assert is_deterministic(model, tokens_BT, poisoned=poisoned)


def test_a_gradient_whose_last_bits_are_chance_is_found(model, tokens_BT):
    with backends.wrap("ssd", round_gradient_by_chance):
        assert not is_deterministic(model, tokens_BT)


def leaves_the_end_unwritten(kernel):
    def wrapped(*inputs):
        y, final = kernel(*inputs)
        tail = torch.empty_like(y[:, -1:])
        return torch.cat([y[:, :-1], tail.masked_fill(torch.isfinite(tail), 0.0)], dim=1), final

    return wrapped


def test_memory_that_nothing_was_written_to_shows_only_where_it_is_poisoned(model, tokens_BT):
    with backends.wrap("wkv6", leaves_the_end_unwritten):
        assert not is_deterministic(model, tokens_BT, poisoned=True)


def part(kind, note=""):
    from kernels.packages import Installed

    return Installed("selective_scan_cuda", "2.3.2", kind, "selective_scan", None, note)


def test_a_stub_poses_only_where_the_backend_in_use_runs_on_it(monkeypatch):
    chosen = {"selective_scan": "mamba_ssm"}
    monkeypatch.setattr(backends, "select", lambda op, device: backends.Choice(op, chosen[op], ""))
    assert posing_stubs([part("real")]) == []
    assert posing_stubs([part("stub", "it has no fwd")]) == [
        "selective_scan runs as mamba_ssm, but selective_scan_cuda is stub: it has no fwd"
    ]
    chosen["selective_scan"] = "reference"
    assert posing_stubs([part("stub"), replace(part("absent"), gives="compiles the kernels of mamba_ssm")]) == []
