"""Random state, threads and the log."""

import math

import pytest
import torch

from harness.runlog import RunLog, RunLogError, read_rows
from harness.runtime import configure_cpu, retain_memory, seeded


def test_a_seed_gives_its_numbers_inside_and_changes_nothing_outside():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(4)
    assert torch.equal(torch.rand(2), expected)
    with seeded(1):
        assert torch.equal(torch.rand(4), first)
    with seeded(2):
        assert not torch.equal(torch.rand(4), first)
    with seeded(1, "train"):
        assert not torch.equal(torch.rand(4), first)


def test_the_init_stream_is_what_manual_seed_gives():
    torch.manual_seed(1)
    expected = torch.rand(3)
    with seeded(1):
        assert torch.equal(torch.rand(3), expected)


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        configure_cpu(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    retain_memory()


def test_rows_come_back_as_they_were_written(tmp_path):
    log = RunLog(tmp_path)
    log.write({"kind": "step", "step": 1, "loss": math.inf, "sums": [1.5, -math.inf]})
    log.write({"kind": "eval", "step": 1, "val_loss": math.nan})
    log.close()
    assert read_rows(tmp_path, "step") == [{"kind": "step", "step": 1, "loss": math.inf, "sums": [1.5, -math.inf]}]
    assert math.isnan(read_rows(tmp_path, "eval")[0]["val_loss"])
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_damaged_or_missing_log_is_named(tmp_path):
    with pytest.raises(RunLogError, match="no log of a training"):
        read_rows(tmp_path, "step")
    (tmp_path / "metrics.jsonl").write_text('{"kind":"step"}\n{"kin')
    with pytest.raises(RunLogError, match="line 2: damaged"):
        read_rows(tmp_path, "step")
