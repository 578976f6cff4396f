"""What the training loop does differently on a GPU: rows read late, bfloat16, the GPU's random state, graphs."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import Poison, SignalPatch, toy_config, toy_train

from harness.runlog import read_rows
from harness.training_loop import CUDA_ROWS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CONFIG = toy_config({"steps": 60, "save_every": 50, "warmup_steps": 5}) if torch.cuda.is_available() else None


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    model, _ = toy_train(directory, config=CONFIG, device="cuda")
    return directory, model


def test_every_step_is_logged_in_order(straight):
    directory, _ = straight
    (header,) = read_rows(directory, "header")
    assert header["dtype"] == "bfloat16"
    assert [row["step"] for row in read_rows(directory, "step")] == list(range(1, 61))
    evaluations = read_rows(directory, "eval")
    assert [row["step"] for row in evaluations] == list(range(0, 61, 4))
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]


@pytest.mark.parametrize("step", [2, 30])
def test_an_interrupted_training_goes_on_bit_equal(straight, tmp_path, step):
    directory, model = straight
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, config=CONFIG, device="cuda", patch=SignalPatch(step, signal.SIGINT))
    resumed, _ = toy_train(tmp_path, config=CONFIG, device="cuda")
    # the header names the patch that interrupts as the reason for eager updates, where the other names the model
    (header, *rows), (straight_header, *straight_rows) = map(read_rows, (tmp_path, directory))
    assert header | {"execution_reason": ""} == straight_header | {"execution_reason": ""}
    assert rows == straight_rows
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_divergence_is_dated_to_its_step_though_it_is_read_later(tmp_path):
    # evaluations read the rows too, so they are put out of the way
    config = toy_config({"steps": 60, "warmup_steps": 5}).model_copy(
        update={"eval": CONFIG.eval.model_copy(update={"every_steps": 50})}
    )
    assert CUDA_ROWS > 10
    _, outcome = toy_train(tmp_path, config=config, device="cuda", patch=Poison(8, math.inf))
    assert (outcome.status, outcome.steps, outcome.reason) == ("diverged", 8, "grad_norm is inf at step 9")
    assert [row["step"] for row in read_rows(tmp_path, "step")] == list(range(1, 10))


def program(name, directory):
    """What a program beside this file finds."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / name), str(directory)]
    path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hybrids(tmp_path_factory):
    return program("graphed_training.py", tmp_path_factory.mktemp("hybrids"))


def largest_difference(one, other) -> float:
    return max(abs(a - b) for a, b in zip(one["loss"], other["loss"], strict=True))


def test_a_hybrid_is_graphed_unless_asked_otherwise(hybrids):
    assert [hybrids[name]["execution"] for name in ("graphed", "eager", "fp32_cpu")] == ["graphed", "eager", "eager"]


def test_graphed_and_compiled_updates_give_the_same_bits(hybrids):
    runs = hybrids["without_the_loop"]
    assert runs["graphed"] == runs["compiled"]


def test_the_same_seed_gives_the_same_bits(hybrids):
    assert hybrids["again"] == hybrids["graphed"]
    assert hybrids["other_seed"]["weights"] != hybrids["graphed"]["weights"]


def test_a_graphed_training_that_was_interrupted_goes_on_bit_equal(hybrids):
    # before, at and after the capture, which every process makes at its own third update
    assert hybrids["resumed"] == hybrids["graphed"]


def test_a_graphed_training_that_begins_as_a_shorter_one_has_the_bits_of_one_from_scratch(hybrids):
    begun = dict(hybrids["begun"])
    assert begun.pop("origin") == {"run": "shorter", "steps": 25, "step": 20}
    assert begun == hybrids["graphed"]


def test_graphed_updates_train_as_eager_ones_do(hybrids):
    graphed, eager, seed = (hybrids[name] for name in ("graphed", "eager", "other_seed"))
    assert graphed["loss"][0] - graphed["loss"][-1] > 0.3, "there is something to compare"
    assert largest_difference(graphed, eager) < largest_difference(seed, graphed)
    assert largest_difference(hybrids["fp32"], hybrids["fp32_eager"]) < 1e-3
    assert largest_difference(hybrids["accumulated"], hybrids["fp32"]) < 1e-3
    assert graphed["update_ratio"] == pytest.approx(eager["update_ratio"], rel=0.2)


def test_cpu_and_gpu_agree(hybrids):
    assert largest_difference(hybrids["fp32"], hybrids["fp32_cpu"]) < 1e-3


def test_a_graphed_divergence_is_dated_to_its_step(hybrids):
    diverged = hybrids["diverged"]
    assert diverged["execution"] == "graphed"
    assert diverged["status"] == "diverged"
    assert not math.isfinite(diverged["loss"][-1]) or "grad_norm" in diverged["reason"]
    assert all(math.isfinite(loss) for loss in diverged["loss"][:-1])
    assert f"at step {len(diverged['loss'])}" in diverged["reason"]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    return program("team_training.py", tmp_path_factory.mktemp("team"))


def bits(runs):
    return [run["bits"] for run in runs]


def test_three_seeds_at_once_have_the_bits_of_each_alone(team):
    assert bits(team["together"]) == bits(team["alone"])
    assert bits(team["as_measured"]) == bits(team["alone"]), "whatever was chosen"
    assert len({run["bits"]["metrics.jsonl"] for run in team["alone"]}) == 3, "there is something to compare"
    assert [run["ended"] for run in team["together"]] == [["finished", 160, "all steps done"]] * 3


def test_how_they_ran_is_kept_beside_the_log(team):
    assert [run["execution"] for run in team["alone"]] == [None] * 3
    for run in team["together"]:
        execution = run["execution"]
        assert (execution["mode"], execution["at_once"]) == ("together", 3)
        assert 0 < execution["together_ms"] < 3 * execution["alone_ms"]
        assert "times the updates of one after another" in execution["reason"]
    measured = [run["execution"] for run in team["as_measured"]]
    gain = sum(run["alone_ms"] for run in measured) / 3 / measured[0]["together_ms"]
    assert {run["mode"] for run in measured} == {"together" if gain >= 1.05 else "alone"}


def test_a_divergence_does_not_reach_the_others(team):
    first, diverged, last = team["beside_a_divergence"]
    # it takes its turns with the others by then
    assert diverged["ended"] == ["diverged", 130, "loss is nan at step 131"]
    assert diverged["execution"]["mode"] == "together"
    assert bits([first, last]) == bits([team["alone"][0], team["alone"][2]])


@pytest.mark.parametrize("step", ["30", "130"])
def test_trainings_interrupted_together_go_on_bit_equal(team, step):
    # while the second is measured alone, and while all take turns; the clock is in the state of the loop, not in these
    assert bits(team["resumed"][step]) == bits(team["alone"])
