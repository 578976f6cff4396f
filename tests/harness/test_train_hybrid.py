"""The training loop on a model of the registry: what it logs by branch, and that it resumes bit-equal."""

import signal

import pytest
import torch
from toy import VOCAB, SignalPatch, toy_config, toy_dataset

from harness.config import RunConfig
from harness.optim import parameter_groups
from harness.runlog import read_rows
from harness.runtime import seeded
from harness.train import train
from harness.training_job import NO_PATCH
from models import get_model


def hybrid_config() -> RunConfig:
    return toy_config({"steps": 8, "batch_tokens": {"cpu": 32, "cuda": 32}, "warmup_steps": 2, "lr": 2e-3})


def hybrid_train(directory, patch=NO_PATCH):
    with seeded(3):
        model = get_model("GF-MH", scale="3.5M", vocab_size=VOCAB)
    train(model, toy_dataset(), hybrid_config(), directory, seed=3, device="cpu", patch=patch)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hybrid")
    return directory, hybrid_train(directory)


def test_both_branches_are_measured_and_updated(trained):
    directory, model = trained
    rows = read_rows(directory, "step")
    # RWKV-6 starts with a zero output matrix: only that matrix has a gradient in the first step
    assert all(row["grad_norm_rwkv"] > 0 and row["grad_norm_mamba"] > 0 for row in rows)
    assert rows[0]["grad_norm_rwkv"] < rows[-1]["grad_norm_rwkv"]
    assert rows[4]["update_ratio_rwkv"] > 0
    (header,) = read_rows(directory, "header")
    for branch, modules in model.branch_modules().items():
        assert header[f"num_params_{branch}"] == sum(p.numel() for m in modules for p in m.parameters())
    evaluations = read_rows(directory, "eval")
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]


def test_an_interrupted_hybrid_goes_on_bit_equal(trained, tmp_path):
    directory, model = trained
    with pytest.raises(KeyboardInterrupt):
        hybrid_train(tmp_path, SignalPatch(3, signal.SIGINT))
    resumed = hybrid_train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_only_matrices_of_the_hybrid_decay():
    model = get_model("GF-MH", scale="3.5M", vocab_size=VOCAB)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, hybrid_config().train)
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert all(p.ndim >= 2 for p in decayed)
    assert not any(
        word in names[id(p)] for p in decayed for word in ("norm", "A_log", "dt_bias", "time_decay", "maa", "bonus")
    )
    assert {group["name"].split(".")[0] for group in groups} == {"rwkv", "mamba", "other"}
    assert {group["lr_mult"] for group in groups if group["name"].startswith("mamba")} == {0.5}
