"""Remedies on a GPU: eager updates in bf16 go as they do on a CPU; a cut row has the gradients of a whole one."""

import math

import pytest
import torch
from toy import VOCAB, toy_config, toy_dataset

from harness.remedies import Treatment
from harness.runlog import read_rows
from harness.runtime import seeded
from harness.train import train
from models import get_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

REMEDIES = {"state_grad_clip": 1e-2, "coupling_loss": 1e-2}


def hybrid():
    with seeded(3):
        return get_model("GF-MH", scale="1.2M", vocab_size=VOCAB)


def rows_of(directory, device, dtype):
    config = toy_config({**REMEDIES, "dtype": dtype, "warmup_steps": 2})
    outcome = train(hybrid(), toy_dataset(), config, directory, seed=3, device=device)
    assert outcome.status == "finished"
    return read_rows(directory)


def test_a_treated_training_is_eager_in_bf16_and_follows_that_of_a_cpu(tmp_path):
    (header, *rows) = rows_of(tmp_path / "gpu", "cuda", "bfloat16")
    (_, *expected) = rows_of(tmp_path / "cpu", "cpu", "float32")
    assert header["execution"] == "eager"
    assert "train.state_grad_clip and train.coupling_loss" in header["execution_reason"]
    steps, wanted = ([row for row in each if row["kind"] == "step"] for each in (rows, expected))
    assert len(steps) == len(wanted) == 20
    for row, want in zip(steps, wanted, strict=True):
        assert row["loss"] == pytest.approx(want["loss"], rel=0.05)
        assert math.isfinite(row["coupling_loss"])
        assert 0 <= row["state_grad_clipped"] <= 1
    assert steps[-1]["coupling_loss"] < 0.5 * steps[0]["coupling_loss"], "unequal writes came closer"


def test_a_limit_that_is_never_reached_leaves_the_gradients_of_the_whole_row():
    model = hybrid().cuda()
    with seeded(8), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape).cuda())
    tokens = torch.randint(VOCAB, (4, 64), generator=torch.Generator().manual_seed(1)).cuda()
    found = []
    for limit in (None, 1e6, 1e-9):
        model.zero_grad()
        treatment = Treatment(model, toy_config({"state_grad_clip": limit}).train)
        treatment.read(tokens).float().log_softmax(-1)[..., 0].mean().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    whole, halves, cut = found
    assert float((halves - whole).norm() / whole.norm()) < 1e-2
    assert float((cut - whole).norm() / whole.norm()) > 3 * float((halves - whole).norm() / whole.norm())
