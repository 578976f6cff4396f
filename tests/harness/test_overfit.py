"""Learning by heart: a small recurrent model does, one without a memory stops at the floor of its reach."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.config import TrainConfig
from harness.errors import HarnessError
from harness.metrics import known_answers_memorising as known
from harness.metrics.memorising import memory_floor, small_set
from harness.overfit import Goal, memorise, memorising_config, recite
from harness.runtime import seeded
from harness.thresholds import load_thresholds
from harness.training_job import TrainingPatch

GOAL = Goal(loss=0.05, accuracy=0.99)
VOCAB = 16


class Small(nn.Module):
    """A GRU over an embedding; with ``memory`` off, the current token alone; with ``order`` off, a bag of words."""

    def __init__(self, memory: bool = True, order: bool = True) -> None:
        super().__init__()
        self.memory, self.order = memory, order
        self.embedding = nn.Embedding(VOCAB, 32)
        self.recurrent = nn.GRU(32, 64, batch_first=True)
        self.current = nn.Linear(32, 64)
        self.head = nn.Linear(64, VOCAB)

    def forward(self, tokens_BT):
        x_BTD = self.embedding(tokens_BT)
        if not self.order:
            x_BTD = x_BTD.cumsum(1)
        return self.head(self.recurrent(x_BTD)[0] if self.memory else torch.tanh(self.current(x_BTD)))


def patterns():
    """Four sequences of eight tokens over an alphabet of four, unlike in their first tokens."""
    generator = np.random.default_rng(0)
    rows = generator.integers(4, 8, size=(4, 9))
    rows[:, 0] = range(4)
    return rows[:, :-1].astype(np.uint16), rows[:, 1:].astype(np.uint16)


def learn(model_options=None, patch=None, steps=300):
    config = memorising_config(TrainConfig(lr=1e-2, threads=1)).model_copy(update={"steps": steps})
    with seeded(1):
        model = Small(**(model_options or {}))
    inputs, targets = patterns()
    return model, memorise(
        model, inputs, targets, config, GOAL, device="cpu", dtype=torch.float32, seed=0, patch=patch or TrainingPatch()
    )


@pytest.mark.parametrize(
    "function",
    [
        known.a_shared_prefix_leaves_ln_2_where_it_branches,
        known.a_reader_of_nothing_has_the_entropy_of_the_words,
        known.the_set_can_be_learnt_and_only_with_a_memory,
    ],
    ids=lambda f: f.__name__,
)
def test_known_answer_holds(function):
    function()


def test_a_model_with_a_memory_learns_the_set_and_stops_early():
    model, found = learn()
    assert found.reached
    assert found.steps == len(found.losses) < 300
    assert found.loss <= GOAL.loss
    assert found.accuracy == 1
    assert recite(model, *patterns(), torch.float32) == (found.loss, found.accuracy)


def test_a_model_without_one_stops_at_the_floor_of_the_current_token():
    _, found = learn({"memory": False})
    floor = float(memory_floor(*patterns(), reach=1)[1:].mean() * 7 / 8)
    assert not found.reached
    assert found.steps == 300
    # the first tokens come nowhere else, so position does not help
    assert floor - 1e-6 <= found.loss < floor + 0.1
    assert floor > 10 * GOAL.loss


def test_a_shared_prefix_costs_ln_2_at_the_branch_and_a_trained_model_pays_it():
    inputs = np.array([[1, 2, 3, 4], [1, 2, 3, 5]], np.uint16)
    targets = np.array([[2, 3, 4, 6], [2, 3, 5, 7]], np.uint16)
    config = memorising_config(TrainConfig(lr=1e-2, threads=1)).model_copy(update={"steps": 200})
    with seeded(2):
        model = Small()
    found = memorise(model, inputs, targets, config, GOAL, device="cpu", dtype=torch.float32, seed=0)
    assert found.loss == pytest.approx(math.log(2) / 4, abs=0.02)
    assert found.loss >= math.log(2) / 4
    assert not found.reached


class Nothing(TrainingPatch):
    """No gradient is applied."""

    def gradients(self, model, step):
        for parameter in model.parameters():
            parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter.grad)


class NaNs(TrainingPatch):
    """A weight becomes NaN."""

    def after_step(self, model, step):
        with torch.no_grad():
            model.head.bias[0] = math.nan


def test_without_gradients_nothing_is_learnt():
    _, found = learn(patch=Nothing(), steps=60)
    assert not found.reached
    assert found.losses[0] == pytest.approx(found.losses[-1], abs=1e-6)
    assert found.loss > 2


def test_detached_weights_are_not_enough():
    class Detached(Small):
        def forward(self, tokens_BT):
            with torch.no_grad():
                hidden = super().forward(tokens_BT)
            return hidden + 0 * self.head.bias.sum()

    config = memorising_config(TrainConfig(lr=1e-2, threads=1)).model_copy(update={"steps": 60})
    with seeded(1):
        model = Detached()
    found = memorise(model, *patterns(), config, GOAL, device="cpu", dtype=torch.float32, seed=0)
    assert not found.reached
    assert found.loss > 2


def test_a_loss_that_is_no_number_ends_it():
    _, found = learn(patch=NaNs())
    assert math.isnan(found.loss)
    assert found.steps == 2
    assert not found.reached


def test_the_same_seed_gives_the_same_set_and_another_seed_another():
    one, again, other = small_set(512, 0), small_set(512, 0), small_set(512, 1)
    assert all(map(np.array_equal, one, again))
    assert not np.array_equal(one[0], other[0])
    # a target is the next input
    assert np.array_equal(one[0][:, 1:], one[1][:, :-1])


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(HarnessError, match="at least 16"):
        small_set(15, 0)


def test_the_goal_is_what_the_table_calls_pass():
    assert Goal.of(load_thresholds().of("OVERFIT")) == GOAL
