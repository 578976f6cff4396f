"""How the benchmarks take and keep times; on a CPU with operations that are quick, on a GPU with graphs."""

import sys
import time

import pytest
import torch

from benchmarks import kernels as kernel_times
from benchmarks import peers, record, timing, workloads
from benchmarks import step as step_times
from kernels import backends

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_all_take_one_turn_a_round_and_who_begins_changes():
    order = []
    turns = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    samples = timing.take_turns(turns, rounds=3, at_most={"b": 1})
    assert order == ["a", "b", "c", "c", "a", "c", "a"]
    assert samples == {"a": [1.0, 5.0, 7.0], "b": [2.0], "c": [3.0, 4.0, 6.0]}


def test_a_summary_holds_median_least_and_the_distance_between_quartiles():
    assert timing.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == {
        "median_ms": 3.0,
        "least_ms": 1.0,
        "spread_ms": 2.0,
        "repeats": 5,
    }
    assert timing.summary([7.0]) == {"median_ms": 7.0, "least_ms": 7.0, "spread_ms": 0.0, "repeats": 1}


def test_a_ratio_is_taken_round_by_round():
    # the machine was three times as slow in the last round, for both
    assert timing.times_as_fast([1.0, 1.0, 3.0], [2.0, 2.0, 6.0]) == 2.0
    assert timing.times_as_fast([1.0], [4.0, 8.0]) == 4.0


def test_time_in_which_kernels_overlap_counts_once():
    assert timing.busy([]) == 0
    assert timing.busy([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4


def test_floors_count_what_must_be_read_and_written():
    """RWKV-6 with all in bf16: 10 bytes a position and channel forward, 18 backward, beside the states."""
    B, T, H, K = 2, 8, 3, 4
    inputs = workloads.wkv6_inputs(B, T, H, K, torch.bfloat16, torch.bfloat16)
    workload = workloads.Workload("wkv6", "", lambda: inputs)
    y, final = torch.empty(B, T, H, K, dtype=torch.bfloat16), torch.empty(B, H, K, K)
    found = workloads.floor_bytes(workload, inputs, (y, final))
    channels, states, bonus = B * T * H * K, 4 * B * H * K * K, 4 * H * K
    assert found["forward"] == 10 * channels + 2 * states + bonus
    # the initial state is read again, and so is the gradient of the final one; that of the initial state is written
    assert found["forward+backward"] - found["forward"] == 18 * channels + 3 * states + 2 * bonus


def test_the_floor_of_a_cross_entropy_reads_the_logits_once():
    inputs = workloads.cross_entropy_inputs(4, 8)
    workload = workloads.Workload("cross_entropy", "", lambda: inputs)
    found = workloads.floor_bytes(workload, inputs, (torch.tensor(0.0),))
    assert found == {"forward": 4 * 8 * 4 + 4 * 8 + 4, "forward+backward": 2 * 4 * 8 * 4 + 4 * 8 + 4}


@pytest.mark.parametrize("grades_the_state", [True, False])
def test_the_backward_pass_begins_at_the_outputs_that_have_gradients(grades_the_state):
    inputs = kernel_times.differentiable(workloads.wkv6_inputs(1, 4, 1, 4))
    workload = workloads.Workload("wkv6", "", lambda: inputs, grades_the_state=grades_the_state)
    seen = []

    def operation(inputs):
        total = sum(tensor.sum() for tensor in inputs.values())
        outputs = {"y": 2 * total, "final": 3 * total}
        for name, output in outputs.items():
            if output.requires_grad:
                output.register_hook(lambda gradient, name=name: seen.append(name))
        return tuple(outputs.values())

    work = kernel_times.passes(workload, operation, [inputs])
    work["forward"]()
    assert seen == []
    work["forward+backward"]()
    assert set(seen) == ({"y", "final"} if grades_the_state else {"y"})


def test_a_peer_that_does_not_run_says_why_and_ours_is_timed_all_the_same():
    def broken():
        raise RuntimeError("no kernel image is available\nfor this device")

    [workload] = [one for one in workloads.cpu_workloads() if (one.op, one.case) == ("rms_norm", "B2 T256 D128")]
    ours = kernel_times.own_candidates(workload, "cpu", reference=True)
    others = [kernel_times.Candidate("other", broken, peer=True)]
    rows = kernel_times.measure(workload, [*ours, *others], "cpu", 1, None)
    assert [row.error for row in rows if row.peer] == ["RuntimeError: no kernel image is available"]
    assert {row.candidate for row in rows if not row.peer} == {one.name for one in ours}
    with pytest.raises(RuntimeError):
        kernel_times.measure(workload, [kernel_times.Candidate("ours", broken)], "cpu", 1, None)


def test_peers_are_compared_with_ours_and_ours_with_the_first_peer():
    [workload] = [one for one in workloads.cpu_workloads() if one.op == "cross_entropy"]
    [peer] = [one for one in peers.OPERATIONS if one.op == "cross_entropy" and not one.needs]
    ours = kernel_times.own_candidates(workload, "cpu", reference=False)
    rows = kernel_times.measure(
        workload, [*ours, kernel_times.Candidate(peer.name, peer.load, peer=True)], "cpu", 2, None
    )
    assert {row.ratio_to for row in rows} == {peer.name}
    assert all(row.ratio == 1 for row in rows if row.peer)
    assert all(row.details["difference"] < 1e-5 for row in rows if row.peer)
    assert not any("difference" in row.details for row in rows if not row.peer)


@pytest.mark.parametrize("fallbacks", [True, False])
def test_where_fallbacks_are_left_out_the_chosen_backend_is_timed(fallbacks):
    workload = workloads.Workload("wkv6", "", dict, fallbacks=fallbacks)
    found = {one.name for one in kernel_times.own_candidates(workload, "cpu", reference=False)}
    chosen = f"wkv6/{backends.select('wkv6', 'cpu').name}"
    assert found == ({chosen, "wkv6/chunked"} if fallbacks else {chosen})


def test_workloads_have_names_of_their_own():
    for made in (list(workloads.cpu_workloads()), list(workloads.cuda_workloads())):
        assert len({(one.op, one.case) for one in made}) == len(made)


def test_a_record_is_read_as_it_was_written(tmp_path):
    row = record.Row(benchmark="step", case="", candidate="GF-MH", part="step", mode="eager", repeats=1, median_ms=0.1)
    written = record.begin("step", "cpu", threads="2").with_rows([row])
    record.write(written, tmp_path / "new" / "step.json")
    assert record.read(tmp_path / "new" / "step.json") == written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step.json"]


@pytest.mark.slow
def test_kernels_are_timed_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernels", "--repeats", "1"])
    threads = torch.get_num_threads()
    try:
        kernel_times.main(
            ["--repeats", "1", "--threads", "1", "--only", "rms_norm", "--json", str(tmp_path / "k.json")]
        )
    finally:
        torch.set_num_threads(threads)
    found = record.read(tmp_path / "k.json")
    assert {row.benchmark for row in found.rows} == {"rms_norm", "gated_rms_norm"}
    assert all(row.median_ms > 0 for row in found.rows)
    assert "rms_norm" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_and_starts_are_timed_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_times, "SETTLED", 2)
    threads = torch.get_num_threads()
    arguments = [
        "--rounds",
        "1",
        "--threads",
        "1",
        "--only",
        "GPT2",
        "--json",
        str(tmp_path / "s.json"),
    ]
    try:
        step_times.main(arguments)
    finally:
        torch.set_num_threads(threads)
    [row] = record.read(tmp_path / "s.json").rows
    assert (row.candidate, row.mode, row.part) == ("GPT2", "eager", "step")
    assert row.tokens_per_s == pytest.approx(512 / row.median_ms * 1e3)
    assert "GPT2" in capsys.readouterr().out


@pytest.mark.parametrize("module", [kernel_times, step_times])
def test_a_gpu_that_is_not_there_and_peers_without_one_are_refused(module, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in ((["--device", "cuda"], "torch sees no GPU"), (["--peers"], "add --device cuda")):
        with pytest.raises(SystemExit) as error:
            module.main(arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.gpu
@GPU
def test_a_graph_computes_what_the_calls_compute():
    x = torch.randn(64, device="cuda")
    results = timing.captured(lambda: x * 2)
    x.copy_(torch.arange(64.0))
    assert torch.equal(results(), 2 * torch.arange(64.0, device="cuda"))


@pytest.mark.gpu
@GPU
def test_kernels_of_the_gpu_are_counted():
    x = torch.randn(2**20, device="cuda")
    count, busy_ms = timing.device_kernels(lambda: x.mul_(2).add_(1))
    assert count == 2
    assert 0 < busy_ms < 10


@pytest.mark.gpu
@GPU
def test_on_a_gpu_rows_have_both_modes_and_floors():
    [workload] = [one for one in workloads.cuda_workloads() if one.op == "rms_norm"]
    ours = kernel_times.own_candidates(workload, "cuda", reference=False)
    rows = kernel_times.measure(workload, ours, "cuda", 2, timing.copy_gb_s(2))
    assert {row.mode for row in rows} == {"eager", "graphed"}
    assert all(0 < row.floor_ms < row.median_ms for row in rows)


@pytest.mark.slow
def test_the_training_loop_is_timed_step_by_step(monkeypatch):
    monkeypatch.setattr(step_times, "LOOP_STEPS", 3)
    monkeypatch.setattr(step_times, "LOOP_WARMUP", 1)
    threads = torch.get_num_threads()
    try:
        row = step_times.measure_loop("3.5M", "cpu")
    finally:
        torch.set_num_threads(threads)
    assert (row.part, row.mode, row.repeats) == ("loop", "eager", 2)
    assert row.tokens_per_s == pytest.approx(512 / row.median_ms * 1e3)


@pytest.mark.slow
def test_a_start_tells_its_phases_in_order(monkeypatch):
    monkeypatch.setattr(step_times, "SETTLED", 2)
    [candidate] = [one for one in step_times.candidates("cpu", "3.5M", with_peers=False) if one.name == "GPT2"]
    phases = step_times.start(candidate, "cpu", time.time() - 1)
    assert list(phases) == ["imported_s", "built_s", "first_step_s", "step_2_s"]
    assert list(phases.values()) == sorted(phases.values())
    assert phases["imported_s"] >= 1


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("mode", ["eager", "graphed"])
def test_the_step_of_a_peer_trains(mode):
    class Bigrams(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(step_times.NOMINAL_VOCAB_SIZE, 64)

        def forward(self, tokens_BT, targets_BT):
            logits = self.table(tokens_BT) @ self.table.weight.T
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten())

    step = step_times.PeerStep(Bigrams, mode, "cuda")
    before = [parameter.detach().clone() for parameter in step.parameters]
    batches = step_times.make_batches("cuda")
    for batch in batches[:2]:
        step(batch)
    assert not any(torch.equal(p, old) for p, old in zip(step.parameters, before, strict=True))
    held = [parameter.detach().clone() for parameter in step.parameters]
    step(batches[2])
    assert not any(torch.equal(p, old) for p, old in zip(step.parameters, held, strict=True))
