"""The comparisons of trainings fail what is broken, on trainings too short to mean anything else."""

from pathlib import Path

import pytest
from suite_runner import SMALL, run_suites

SHRINKING = f"{Path(__file__).with_name('shrinking.py')}:factory"
STEPS = ("--set", "data.seq_len=64", "--set", "train.batch_tokens.cpu=256", "--set", "eval.every_steps=5",
         "--set", "monitors.probe_every=10")  # fmt: skip
TINY = (*SMALL, *STEPS, "--set", "train.steps=40")
SUITE = "suites/graduation"


@pytest.mark.slow
def test_a_model_that_is_worse_when_larger_fails(store, tmp_path):
    run = run_suites(
        store, tmp_path, "-k", "peer or improvement", "--model", SHRINKING, *TINY, suites=SUITE, marker="small"
    )
    assert run.statuses("PEER", "loss_gap") == {"FAIL"}, run.output
    assert run.statuses("IMPROVEMENT", "gain") == {"FAIL"}, run.output


@pytest.mark.slow
def test_a_longer_training_that_goes_wrong_fails(store, tmp_path):
    # the defect comes at step 120: after the end of the shorter training, before that of the longer
    size = (*SMALL, *STEPS, "--set", "train.steps=70")
    run = run_suites(
        store, tmp_path, "-k", "extended", "--model", "mutant:loss_spike", *size, suites=SUITE, marker="small"
    )
    assert run.statuses("EXTENDED", "training_finished") == {"PASS"}, run.output
    assert run.statuses("EXTENDED", "loss_change") == {"FAIL"}, run.output
    assert run.status("EXTENDED") == "FAIL"


@pytest.mark.slow
def test_a_branch_without_gradient_and_without_use_fails(store, tmp_path):
    size = (*TINY, "--set", "monitors.update_every=2")
    run = run_suites(
        store, tmp_path, "-k", "bpe", "--model", "mutant:detached_rwkv", *size, suites=SUITE, marker="small"
    )
    assert run.statuses("BPE-REPL", "gradient_ratio") == {"WARN"}, run.output
    assert run.statuses("BPE-REPL", "both_branches_live") == {"FAIL"}, run.output


@pytest.mark.slow
def test_a_healthy_model_fails_none_and_gpt2_has_no_peer(store, tmp_path):
    size = (*TINY, "--set", "monitors.update_every=2")
    run = run_suites(store, tmp_path / "own", "-k", "peer or cer or improvement or extended or bpe", *size,
                     suites=SUITE, marker="small")  # fmt: skip
    for check in ("PEER", "CER", "IMPROVEMENT", "EXTENDED", "BPE-REPL"):
        assert run.status(check) in ("PASS", "WARN"), run.output
    alone = run_suites(
        store, tmp_path / "peer", "-k", "peer or cer", "--model", "GPT2", *size, suites=SUITE, marker="small"
    )
    assert (alone.status("PEER"), alone.status("CER")) == ("NA", "NA"), alone.output
