"""The proof of a resume: files that lack something show, and a fresh start is not taken for a resume."""

from dataclasses import replace

import pytest
import torch
from toy import toy_train

from harness import known_answers_resume as known
from harness.resume_proof import compare, round_trip


@pytest.mark.parametrize(
    "function",
    [known.equal_bits_are_level_2_and_noise_is_level_1, known.a_tensor_that_the_file_lacks_shows],
    ids=lambda f: f.__name__,
)
def test_known_answer_holds(function):
    function()


def test_a_restart_with_equal_bits_is_no_resume():
    assert known.PROVED.level(round_trip=True) == 2
    assert replace(known.PROVED, resumed_from=0).level(round_trip=True) == 0
    assert replace(known.PROVED, resumed_from=24).level(round_trip=True) == 0


def test_two_equal_trainings_have_no_difference_and_another_seed_has(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        toy_train(tmp_path / name, seed=seed)
    assert compare(tmp_path / "again", tmp_path / "one", 20).is_none
    found = compare(tmp_path / "other", tmp_path / "one", 20)
    assert found.weights
    assert found.optimizer
    assert "random.cpu" in found.random
    assert found.loss > 0


def test_the_sign_of_a_zero_survives(tmp_path):
    model, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    x_BK = torch.randn(2, 4)
    assert round_trip(model, other, x_BK, tmp_path / "sound").is_exact
    with torch.no_grad():
        model.bias[0] = -0.0
    assert round_trip(model, other, x_BK, tmp_path / "zero").is_exact
    assert torch.signbit(other.bias[0])
