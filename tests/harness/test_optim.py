"""The learning rate and who gets which."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import ToyModel

from harness.config import TrainConfig
from harness.optim import (
    OptimError,
    branch_parameters,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)

CONFIG = TrainConfig(steps=100, lr=1.0, warmup_steps=10, decay_fraction=0.2, min_lr_ratio=0.1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (79, 1.0), (80, 0.955), (89, 0.55), (98, 0.145), (99, 0.1)],
)
def test_the_rate_warms_up_stays_and_decays(step, expected):
    assert learning_rate(step, CONFIG) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step", [-1, 100])
def test_there_is_no_rate_outside_the_run(step):
    with pytest.raises(ValueError, match=r"outside 0 \.\. 99"):
        learning_rate(step, CONFIG)


@given(short=st.integers(60, 400), more=st.integers(0, 400), share=st.floats(0, 0.5))
def test_a_longer_run_has_the_same_rates_until_the_shorter_decays(short, more, share):
    one = TrainConfig(steps=short, warmup_steps=20, decay_fraction=share)
    other = TrainConfig(steps=short + more, warmup_steps=20, decay_fraction=share)
    shared = range(short - one.decay_steps)
    assert [learning_rate(step, one) for step in shared] == [learning_rate(step, other) for step in shared]


def test_no_decay_means_a_constant_rate():
    config = TrainConfig(steps=10, lr=3.0, warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate(step, config) for step in range(10)} == {3.0}


def test_every_parameter_is_in_the_group_it_belongs_to():
    model = ToyModel()
    model.recurrent.weight_hh_l0._no_weight_decay = True
    config = TrainConfig(weight_decay=0.1, mamba_lr_mult=0.5, rwkv_lr_mult=3.0)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["weight_decay"], group["lr_mult"])
        for group in parameter_groups(model, config)
        for p in group["params"]
    }
    assert found == {
        "embedding.weight": (0.0, 1.0),
        "recurrent.weight_ih_l0": (0.1, 3.0),
        "recurrent.weight_hh_l0": (0.0, 3.0),
        "recurrent.bias_ih_l0": (0.0, 3.0),
        "recurrent.bias_hh_l0": (0.0, 3.0),
        "mixer.weight": (0.1, 0.5),
        "mixer.bias": (0.0, 0.5),
        "norm.weight": (0.0, 1.0),
        "norm.bias": (0.0, 1.0),
    }


def test_the_multiplier_reaches_the_update():
    torch.manual_seed(0)
    model = ToyModel()
    optimizer = make_optimizer(model, TrainConfig(mamba_lr_mult=0.5, rwkv_lr_mult=1.0, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    set_learning_rate(optimizer, 0.01)
    optimizer.step()
    # Adam's first step is lr in every entry
    for name, p in model.named_parameters():
        expected = 0.005 if name.startswith("mixer") else 0.01
        torch.testing.assert_close(before[name] - p, torch.full_like(p, expected), rtol=1e-3, atol=1e-6)


def test_a_model_without_branches_has_one_rate():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    assert branch_parameters(model) == {}
    assert {group["lr_mult"] for group in parameter_groups(model, TrainConfig())} == {1.0}


def test_frozen_parameters_are_left_out():
    model = ToyModel()
    model.mixer.requires_grad_(False)
    assert branch_parameters(model)["mamba"] == {}
    assert all(p.requires_grad for group in parameter_groups(model, TrainConfig()) for p in group["params"])
    with pytest.raises(OptimError, match="no trainable parameter"):
        make_optimizer(model.requires_grad_(False), TrainConfig())


def test_a_parameter_of_two_branches_is_refused():
    class Shared(ToyModel):
        def branch_modules(self):
            return {"rwkv": [self.recurrent, self.mixer], "mamba": [self.mixer]}

    with pytest.raises(OptimError, match=r"mixer\.weight belongs to the branches rwkv and mamba"):
        branch_parameters(Shared())


def test_a_branch_outside_the_model_is_refused():
    class Foreign(ToyModel):
        def branch_modules(self):
            return {"rwkv": [nn.Linear(2, 2)]}

    with pytest.raises(OptimError, match=r"branch_modules\(\)\['rwkv'\]"):
        branch_parameters(Foreign())
