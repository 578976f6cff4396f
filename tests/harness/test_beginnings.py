"""A training that begins as a shorter one is the one from its first step, bit for bit; the comparison can tell."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spoiling import edit, forget, wrong_random_state
from toy import SignalPatch, ToyModel, toy_config, toy_dataset, toy_probe, toy_train

from fixtures.training import stop_monitors
from harness.beginnings import (
    BeginningError,
    Origin,
    decay_start,
    kept_step,
    monitors_agree,
    read_origin,
    require_longer,
    state_path,
)
from harness.checkpoint import OPTIMIZER, TRAINING, CheckpointError
from harness.resume_proof import compare
from harness.runlog import RunLogError, read_beginning, read_rows
from harness.runtime import Interrupt, seeded
from harness.team import Member, Team
from harness.train import run_job
from harness.training_files import checkpoint_steps, read_outcome
from harness.training_job import NO_PATCH, TrainError, TrainingPatch, TrainJob

SHORT, LONG, SHARED = 20, 40, 16
"""Steps: the shorter one decays over its last 4. Step 16 is one of an evaluation, and 7 and 16 keep weights."""


def config_of(steps, **train):
    return toy_config({"steps": steps, "checkpoint_steps": [7, SHARED], **train}, {"probe_every": 8})


def toy(directory: Path, steps: int, config=None, **options):
    """A toy training with every item that a beginning has to carry; dropout makes the random state matter."""
    return toy_train(directory, config=config or config_of(steps), monitors=[stop_monitors()], **options)[1]


@pytest.fixture(scope="module")
def shorter(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "shorter"
    toy(directory, SHORT, keeps_beginning=True)
    return directory


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """What the longer training is from its first step."""
    directory = tmp_path_factory.mktemp("runs") / "scratch"
    toy(directory, LONG)
    return directory


@pytest.fixture
def copied(shorter, tmp_path):
    """The shorter run, to be spoilt."""
    return Path(shutil.copytree(shorter, tmp_path / "copied"))


def differences_of(directory: Path, reference: Path, steps: int) -> list[str]:
    """Parts of two finished trainings that are not bit-equal."""
    return [part for part, found in compare(directory, reference, steps).parts.items() if found]


def state(directory: Path) -> Path:
    return state_path(directory, SHARED)


class CountedBatches(TrainingPatch):
    """Notes the steps that are trained; at one of them it sends a signal, without looking inside an update."""

    def __init__(self, at: int = -1, signum: int = signal.SIGINT) -> None:
        self.at, self.signum, self.steps = at, signum, []

    def batch(self, inputs, targets, *, seed, step):
        self.steps.append(step)
        if step == self.at:
            os.kill(os.getpid(), self.signum)
        return inputs, targets


# --- equal in every bit ----------------------------------------------------------------------------------------------


def test_a_longer_training_that_begins_as_a_shorter_one_is_the_one_from_scratch(shorter, scratch, tmp_path):
    patch = CountedBatches()
    outcome = toy(tmp_path, LONG, begins_as=shorter, patch=patch)
    assert patch.steps == list(range(SHARED, LONG)), "the rest is not trained again"
    assert (outcome.status, outcome.steps) == ("finished", LONG)
    assert differences_of(tmp_path, scratch, LONG) == []
    assert (tmp_path / "metrics.jsonl").read_bytes() == (scratch / "metrics.jsonl").read_bytes()
    assert checkpoint_steps(tmp_path) == checkpoint_steps(scratch) == [7, SHARED, LONG]
    for step in (7, SHARED):
        name = f"checkpoints/step-{step:06d}/model.safetensors"
        assert (tmp_path / name).read_bytes() == (scratch / name).read_bytes()


def test_keeping_a_beginning_changes_nothing(shorter, tmp_path):
    toy(tmp_path, SHORT)
    assert differences_of(tmp_path, shorter, SHORT) == []
    assert kept_step(tmp_path) is None
    assert kept_step(shorter) == SHARED == decay_start(config_of(SHORT).train)


def test_lengths_begin_as_one_another_in_a_row(shorter, scratch, tmp_path):
    toy(tmp_path / "middle", 30, begins_as=shorter, keeps_beginning=True)
    assert kept_step(tmp_path / "middle") == 24
    toy(tmp_path / "long", LONG, begins_as=tmp_path / "middle")
    assert differences_of(tmp_path / "long", scratch, LONG) == []
    assert read_origin(tmp_path / "long") == Origin("middle", 30, 24)


def test_a_training_without_a_decay_shares_all_of_its_steps(tmp_path):
    # the shorter one looks inside after its last update, as the longer one does not: 20 is no step of a probe
    flat = {"decay_fraction": 0.0}
    toy(tmp_path / "short", SHORT, config_of(SHORT, **flat), keeps_beginning=True)
    assert kept_step(tmp_path / "short") == SHORT
    toy(tmp_path / "scratch", LONG, config_of(LONG, **flat))
    toy(tmp_path / "long", LONG, config_of(LONG, **flat), begins_as=tmp_path / "short")
    assert differences_of(tmp_path / "long", tmp_path / "scratch", LONG) == []
    assert SHORT in [row["step"] for row in read_rows(tmp_path / "short", "probe")]
    assert SHORT not in [row["step"] for row in read_rows(tmp_path / "long", "probe")]


def test_a_training_that_decays_from_the_first_step_keeps_nothing(tmp_path):
    toy(tmp_path, SHORT, config_of(SHORT, decay_fraction=1.0, warmup_steps=0), keeps_beginning=True)
    assert kept_step(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(*forget("exp_avg/"), id="first moments"),
        pytest.param(*forget("exp_avg_sq/"), id="second moments"),
        pytest.param(*forget("step/"), id="bias correction counts"),
        pytest.param(OPTIMIZER, wrong_random_state, id="random state"),
        pytest.param(TRAINING, lambda training: training.update(next_batch=0), id="data cursor"),
        pytest.param(TRAINING, lambda training: training.update(evaluated_step=SHARED), id="evaluated step"),
        pytest.param(TRAINING, lambda training: training.update(probed_step=SHARED), id="probed step"),
        pytest.param(
            TRAINING, lambda training: training["monitors"][0]["spike"].update(fed=0), id="memory of a monitor"
        ),
        pytest.param(*forget("mixer.weight", "model.safetensors"), id="a weight"),
    ],
)
def test_the_comparison_notices_an_item_that_was_not_carried(copied, scratch, tmp_path, name, change):
    edit(state(copied), name, change)
    toy(tmp_path / "long", LONG, begins_as=copied)
    assert differences_of(tmp_path / "long", scratch, LONG) != []


def test_it_says_as_what_it_began_and_counts_the_time_of_the_shared_part(shorter, scratch, copied, tmp_path):
    edit(state(copied), TRAINING, lambda training: training.update(wall_s=1000.0))
    outcome = toy(tmp_path / "long", LONG, begins_as=copied)
    assert read_origin(tmp_path / "long") == Origin("copied", SHORT, SHARED)
    assert json.loads((tmp_path / "long" / "beginning.json").read_text()) == {"run": "copied", "steps": 20, "step": 16}
    assert 1000 < outcome.wall_s < 1100
    assert read_beginning(tmp_path / "long") == read_beginning(shorter), "it began when its first update was taken"
    assert read_origin(scratch) is read_origin(shorter) is None


# --- interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [16, 17, 25, 33])
def test_stopped_by_ctrl_c_in_its_own_part_it_goes_on_bit_equal(shorter, scratch, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path, LONG, begins_as=shorter, patch=CountedBatches(step))
    patch = CountedBatches()
    # it goes on from its own state, whatever has become of the shorter one
    toy(tmp_path, LONG, begins_as=None, patch=patch)
    assert patch.steps == list(range(step + 1, LONG))
    assert differences_of(tmp_path, scratch, LONG) == []
    assert read_origin(tmp_path) == Origin("shorter", SHORT, SHARED)


@pytest.mark.parametrize("step", [7, 15, 16, 18])
def test_a_shorter_one_that_was_interrupted_keeps_the_same_beginning(scratch, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "short", SHORT, keeps_beginning=True, patch=CountedBatches(step))
    toy(tmp_path / "short", SHORT, keeps_beginning=True)
    toy(tmp_path / "long", LONG, begins_as=tmp_path / "short")
    assert differences_of(tmp_path / "long", scratch, LONG) == []


def test_a_shorter_one_interrupted_in_the_evaluation_at_its_decay_keeps_it_too(scratch, tmp_path, monkeypatch):
    import harness.training_loop

    evaluate, calls = harness.training_loop.evaluate, []

    def interrupt_one(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # 0, 4, 8, 12, 16
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(harness.training_loop, "evaluate", interrupt_one)
    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "short", SHORT, keeps_beginning=True)
    toy(tmp_path / "short", SHORT, keeps_beginning=True)
    toy(tmp_path / "long", LONG, begins_as=tmp_path / "short")
    assert differences_of(tmp_path / "long", scratch, LONG) == []


def in_a_process(directory: Path, steps: int, shorter: Path | None, killed_in: int) -> int:
    """This file as a program: a training that kills itself."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parents[1]}:{here}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, directory, str(steps), shorter or "", str(killed_in)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=120).returncode


@pytest.mark.parametrize(("killed_in", "resumed_from"), [(17, SHARED), (33, 30)])
def test_killed_in_its_own_part_it_goes_on_bit_equal(shorter, scratch, tmp_path, killed_in, resumed_from):
    # 17 is before its first checkpoint, at step 20: then it begins as the shorter one once more
    assert in_a_process(tmp_path, LONG, shorter, killed_in) == -signal.SIGKILL
    patch = CountedBatches()
    toy(tmp_path, LONG, begins_as=shorter, patch=patch)
    assert patch.steps[0] == resumed_from
    assert differences_of(tmp_path, scratch, LONG) == []
    assert read_origin(tmp_path) is not None


def test_killed_and_then_trained_from_scratch_it_does_not_say_that_it_began_elsewhere(shorter, scratch, tmp_path):
    assert in_a_process(tmp_path, LONG, shorter, 17) == -signal.SIGKILL
    assert read_origin(tmp_path) is not None
    toy(tmp_path, LONG)
    assert read_origin(tmp_path) is None
    assert differences_of(tmp_path, scratch, LONG) == []


def test_a_shorter_one_killed_behind_its_beginning_keeps_that_of_its_second_try(scratch, tmp_path):
    assert in_a_process(tmp_path / "short", SHORT, None, 18) == -signal.SIGKILL
    assert kept_step(tmp_path / "short") == SHARED
    toy(tmp_path / "short", SHORT, keeps_beginning=True)
    toy(tmp_path / "long", LONG, begins_as=tmp_path / "short")
    assert differences_of(tmp_path / "long", scratch, LONG) == []


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 2e-3}, "config_sha256"),
        ({"warmup_steps": 6}, "config_sha256"),
        ({"steps": SHORT}, "it has 20 steps itself"),
        ({"steps": 18}, "it has 20 steps itself"),
    ],
)
def test_another_training_in_more_than_its_steps_is_refused(shorter, tmp_path, changed, message):
    config = config_of(**{"steps": LONG, **changed})
    with pytest.raises(BeginningError, match=message):
        toy(tmp_path, LONG, config=config, begins_as=shorter)
    with pytest.raises(BeginningError, match=r"train\.steps alone"):
        require_longer(config, config_of(SHORT))


def test_the_refusal_of_configurations_names_what_differs():
    with pytest.raises(BeginningError, match=r"train\.lr 0\.01 there, 0\.002 here, train\.steps 20 there, 40 here"):
        require_longer(config_of(LONG, lr=2e-3), config_of(SHORT))
    require_longer(config_of(LONG), config_of(SHORT))


def test_another_seed_or_patch_is_refused(shorter, tmp_path):
    class Named(TrainingPatch):
        name = "named"

    with pytest.raises(BeginningError, match="seed 3 there, 4 wanted"):
        toy(tmp_path, LONG, begins_as=shorter, seed=4)
    with pytest.raises(BeginningError, match="patch none there, named wanted"):
        toy(tmp_path, LONG, begins_as=shorter, patch=Named())
    assert not list(tmp_path.glob("**/*.jsonl")), "nothing was begun"


def test_learning_rates_are_compared_one_by_one(copied, tmp_path):
    # a state from the middle of the decay, passed off as the beginning
    state(copied).rename(state_path(copied, 18))
    with pytest.raises(BeginningError, match="learning rates"):
        toy(tmp_path / "long", LONG, begins_as=copied)


def test_a_state_of_another_step_than_it_is_called_by_is_refused(copied, tmp_path):
    edit(state(copied), TRAINING, lambda training: training.update(step=18))
    with pytest.raises(BeginningError, match="step 18"):
        toy(tmp_path / "long", LONG, begins_as=copied)


def test_a_patch_that_looks_inside_shares_nothing(shorter, tmp_path):
    for given in ({"begins_as": shorter}, {"keeps_beginning": True}):
        with pytest.raises(TrainError, match="may remember"):
            toy(tmp_path, LONG, patch=SignalPatch(99, signal.SIGINT), **given)


def test_a_run_without_a_beginning_is_refused(scratch, tmp_path):
    with pytest.raises(BeginningError, match="kept no beginning"):
        toy(tmp_path / "long", 60, begins_as=scratch)
    with pytest.raises(RunLogError, match="no header"):
        toy(tmp_path / "long", 60, begins_as=tmp_path / "nowhere")


def test_a_damaged_state_log_or_checkpoint_is_refused(copied, tmp_path):
    log = copied / "metrics.jsonl"
    sound = log.read_bytes()
    log.write_bytes(sound.replace(b'"step":5,', b'"step":6,', 1))
    with pytest.raises(RunLogError, match="does not match"):
        toy(tmp_path / "long", LONG, begins_as=copied)
    log.write_bytes(sound)
    kept = copied / "checkpoints" / "step-000007" / "model.safetensors"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        toy(tmp_path / "long", LONG, begins_as=copied)
    (state(copied) / OPTIMIZER).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        toy(tmp_path / "long", LONG, begins_as=copied)


@pytest.mark.parametrize("at", [10, 17])
def test_a_run_that_diverged_keeps_no_beginning(tmp_path, at):
    class Blown(TrainingPatch):
        """Weights that are not finite, without a hook."""

        def batch(self, inputs, targets, *, seed, step):
            if step == at:
                with torch.no_grad():
                    self.model.mixer.weight.fill_(float("nan"))
            return inputs, targets

    patch = Blown()
    with seeded(3):
        patch.model = ToyModel()
    run_job(TrainJob(patch.model, toy_dataset(), config_of(SHORT), tmp_path, 3, "cpu", patch, keeps_beginning=True))
    assert read_outcome(tmp_path).status == "diverged"
    assert kept_step(tmp_path) is None


def test_monitors_agree_as_long_as_their_limits_do(shorter, tmp_path):
    assert monitors_agree(shorter, [stop_monitors()])
    other = stop_monitors()
    for rule in other.rules:
        rule.limits = rule.limits.__class__(**{**vars(rule.limits), "write_sensitivity": 1e9})
    assert not monitors_agree(shorter, [other]), "collapse would have been said"
    assert not monitors_agree(shorter, [])


# --- beside others ---------------------------------------------------------------------------------------------------


def test_in_a_team_it_is_the_same(shorter, scratch, tmp_path):
    team = Team(Interrupt(), lambda index, outcome: None)
    for index, begins_as in enumerate((shorter, None)):
        with seeded(3):
            model = ToyModel()
        job = TrainJob(model, toy_dataset(), config_of(LONG), tmp_path / str(index), 3, "cpu", NO_PATCH,
                       [stop_monitors()], toy_probe, begins_as=begins_as, keeps_beginning=True)  # fmt: skip
        team.members.append(Member(index, job, team.interrupt))
    with team.saved_together():
        team.take_turns()
    for index in (0, 1):
        assert differences_of(tmp_path / str(index), scratch, LONG) == []
        assert kept_step(tmp_path / str(index)) == 32


if __name__ == "__main__":
    place, steps, begins_as, killed_in = sys.argv[1:]
    toy(
        Path(place),
        int(steps),
        begins_as=Path(begins_as) if begins_as else None,
        keeps_beginning=True,
        patch=CountedBatches(int(killed_in), signal.SIGKILL),
    )
