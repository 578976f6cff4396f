"""Counting and measuring a training step, on models small enough to count by hand."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fixtures.presets import load_preset
from harness import resource
from harness.resource import BusyError, RandomStep, WarmedUp, available_bytes, count, saved_bytes

VOCAB, WIDTH = 64, 8
CONFIG = load_preset(
    "tiny", [f"data.vocab_size={VOCAB}", "data.seq_len=16", "train.batch_tokens.cpu=64", "train.threads=1"]
)


class Toy(nn.Module):
    """Embedding, one square matrix, sigmoid, head. Autograd keeps tokens, x, sigmoid(x W), and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.square = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.head = nn.Parameter(torch.randn(WIDTH, VOCAB))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B, T, V]``."""
        return torch.sigmoid(self.embed(tokens_BT) @ self.square) @ self.head


def test_bytes_and_operations_are_counted_by_hand():
    size = count(Toy(), CONFIG, "cpu")

    parameters = 2 * VOCAB * WIDTH + WIDTH**2
    assert size.parameters == parameters
    assert size.fixed_bytes == 16 * parameters  # weights, gradients, two moments, 4 bytes each
    assert size.state_bytes == 0
    assert size.tokens == 64
    # 64 tokens: their numbers (int64), the embedding's output, the sigmoid
    assert size.saved_bytes == 64 * 8 + 2 * 64 * WIDTH * 4
    assert size.flops_per_token == 3 * 2 * (WIDTH**2 + WIDTH * VOCAB)
    assert size.launches >= 4


def test_what_is_kept_grows_with_the_batch_and_a_frozen_weight_has_no_moments():
    model = Toy()
    one, two = (saved_bytes(model, torch.zeros(rows, 16, dtype=torch.int64), torch.float32) for rows in (1, 2))
    assert two == 2 * one

    before = count(model, CONFIG, "cpu").fixed_bytes
    model.square.requires_grad_(False)
    assert before - count(model, CONFIG, "cpu").fixed_bytes == 12 * WIDTH**2


def test_a_step_is_a_training_step():
    model = Toy()
    before = model.square.detach().clone()
    step = RandomStep(model, CONFIG, "cpu")
    step()

    assert (step.mode, step.tokens) == ("eager", 64)
    assert not torch.equal(before, model.square)
    assert model.square.grad is None
    assert step.update.optimizer.state[model.square]["exp_avg"].any()


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr(resource, "WINDOW_S", 0.01)
    monkeypatch.setattr(resource, "YARDSTICK_S", 0.01)
    # more threads than there ever are cores: what they get of their time is below any limit
    monkeypatch.setattr(resource, "LEAST_SHARE", 2.0)
    with pytest.raises(BusyError, match="processor time"):
        WarmedUp(Toy, CONFIG, "cpu").measure()


def test_the_measuring_begins_when_it_is_asked_for_and_the_peak_before_the_model(monkeypatch):
    monkeypatch.setattr(resource, "WINDOW_S", 0.01)
    monkeypatch.setattr(resource, "YARDSTICK_S", 0.01)
    monkeypatch.setattr(resource, "LEAST_SHARE", 0.0)
    done = []

    class Seen(Toy):
        def forward(self, tokens_BT: Tensor) -> Tensor:
            done.append("step")
            return super().forward(tokens_BT)

    def build():
        done.append("build")
        return Seen()

    monkeypatch.setattr(resource._Memory, "__init__", lambda self, device: done.append("memory"))
    monkeypatch.setattr(resource._Memory, "peak_above_start", lambda self: done.append("peak") or 1)
    warm = WarmedUp(build, CONFIG, "cpu")
    assert done == ["memory", "build", *["step"] * (resource.WARM_UP_STEPS - 1)]

    asked = datetime.now(UTC)
    found = warm.measure()
    assert datetime.fromisoformat(found.began) >= asked
    assert done[-1] == "peak"
    # the rest of the warm-up, one step to see how long it takes, and the windows
    assert done.count("step") == resource.WARM_UP_STEPS + 1 + resource.WINDOWS * found.steps_a_window


def test_a_measurement_is_complete_json(monkeypatch):
    monkeypatch.setattr(resource, "WINDOW_S", 0.01)
    monkeypatch.setattr(resource, "YARDSTICK_S", 0.01)
    monkeypatch.setattr(resource, "LEAST_SHARE", 0.0)
    found = WarmedUp(Toy, CONFIG, "cpu").measure()

    assert len(found.tokens_per_s) == resource.WINDOWS
    assert min(found.tokens_per_s) <= found.speed <= max(found.tokens_per_s)
    assert found.yardstick > 0
    assert json.loads(json.dumps(asdict(found)))["peak_bytes"] == found.peak_bytes


def test_what_is_available_counts_what_the_kernel_would_give_up(tmp_path, monkeypatch):
    # not what is free: the cache of files is given up for a new process
    account = tmp_path / "meminfo"
    account.write_text("MemTotal:       16000000 kB\nMemFree:          500000 kB\nMemAvailable:    9000000 kB\n")
    monkeypatch.setattr(resource, "_MEMINFO", account)
    assert available_bytes() == 9_000_000 * 1024


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads Linux's account of the machine")
def test_this_machine_has_less_available_than_it_has():
    assert 0 < available_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process")
def test_the_peak_is_that_of_the_process_alone():
    # ru_maxrss of a new process is at least that of the one that started it: 300 MB here would show there
    ballast = torch.ones(300 << 20, dtype=torch.uint8)
    code = "from harness.resource import _resident; print(_resident('VmHWM'), _resident('VmRSS'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())

    # the kernel adds both up in steps of some pages
    assert abs(peak - now) < ballast.nbytes / 4
