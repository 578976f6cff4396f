"""A training that was interrupted or killed ends bit-equal to one that was not, and the comparison can tell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from spoiling import edit, forget, wrong_random_state
from toy import SignalPatch, toy_config, toy_train

from harness.checkpoint import OPTIMIZER, TRAINING, CheckpointError
from harness.hashing import sha256_file
from harness.resume_proof import compare
from harness.runlog import RunLogError, read_rows

HERE = Path(__file__).parent


def run_toy(directory: Path, *arguments: int) -> int:
    """The toy training in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "toy.py"), str(directory), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=120).returncode


def differences(directory: Path, reference: Path) -> list[str]:
    """Parts of a finished training that are not bit-equal."""
    return [part for part, found in compare(directory, reference, 20).parts.items() if found]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight")
    toy_train(directory)
    return directory


def interrupted(directory: Path, step: int = 12) -> Path:
    """A training that was stopped in update ``step``; returns its resumable checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        toy_train(directory, patch=SignalPatch(step, signal.SIGINT))
    (checkpoint,) = (directory / "resume").iterdir()
    return checkpoint


@pytest.mark.parametrize("step", [0, 3, 9, 12, 18])
def test_a_training_stopped_by_ctrl_c_goes_on_bit_equal(straight, tmp_path, step):
    # 3 and 19 are followed by an evaluation, 9 by a periodic checkpoint
    interrupted(tmp_path, step)
    toy_train(tmp_path)
    assert differences(tmp_path, straight) == []


def test_a_training_stopped_in_every_step_goes_on_bit_equal(straight, tmp_path):
    for step in range(20):
        with pytest.raises(KeyboardInterrupt):
            toy_train(tmp_path, patch=SignalPatch(step, signal.SIGINT))
    toy_train(tmp_path)
    assert differences(tmp_path, straight) == []


def test_a_killed_training_goes_on_bit_equal_in_a_new_process(straight, tmp_path):
    # killed in update 14: the checkpoint of step 10 is the last, rows 11 to 14 are in the log and come again
    assert run_toy(tmp_path, 14, signal.SIGKILL) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000010"]
    assert run_toy(tmp_path) == 0
    assert [row["step"] for row in read_rows(tmp_path, "step")] == list(range(1, 21))
    # step 10 was probed before its checkpoint and is not probed again
    assert [row["step"] for row in read_rows(tmp_path, "probe")] == [5, 10, 15, 20]
    assert differences(tmp_path, straight) == []


def test_a_training_killed_before_its_first_checkpoint_starts_again(straight, tmp_path):
    assert run_toy(tmp_path, 4, signal.SIGKILL) == -signal.SIGKILL
    assert run_toy(tmp_path) == 0
    assert differences(tmp_path, straight) == []


def test_rows_logged_after_the_checkpoint_are_cut_off(straight, tmp_path):
    interrupted(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"kind":"step","step":14}\n{"kind":"st')
    toy_train(tmp_path)
    assert differences(tmp_path, straight) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(*forget("exp_avg/"), id="first moments"),
        pytest.param(*forget("exp_avg_sq/"), id="second moments"),
        pytest.param(*forget("step/"), id="bias correction counts"),
        pytest.param(OPTIMIZER, wrong_random_state, id="random state"),
        pytest.param(TRAINING, lambda training: training.update(next_batch=0), id="data cursor"),
        pytest.param(TRAINING, lambda training: training.update(step=0, evaluated_step=0), id="step"),
        pytest.param(*forget("mixer.weight", "model.safetensors"), id="a weight"),
    ],
)
def test_the_comparison_catches_an_item_that_was_not_restored(straight, tmp_path, name, change):
    edit(interrupted(tmp_path), name, change)
    toy_train(tmp_path)
    assert differences(tmp_path, straight) != []


def test_monitors_go_on_with_what_they_remember(tmp_path):
    class Counter:
        def __init__(self):
            self.rows = 0

        def observe(self, row):
            self.rows += 1
            return []

        def state_dict(self):
            return {"rows": self.rows, "best": float("inf")}

        def load_state_dict(self, state):
            assert state["best"] == float("inf")
            self.rows = state["rows"]

    whole, first, second = Counter(), Counter(), Counter()
    toy_train(tmp_path / "whole", monitors=[whole])
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "parts", monitors=[first], patch=SignalPatch(12, signal.SIGINT))
    toy_train(tmp_path / "parts", monitors=[second])
    assert 0 < first.rows < second.rows == whole.rows


def test_a_damaged_checkpoint_is_refused_with_its_name_and_hashes(tmp_path):
    checkpoint = interrupted(tmp_path)
    path = checkpoint / OPTIMIZER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        toy_train(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert sha256_file(path) in message
    assert f"delete {checkpoint}" in message


def test_a_log_that_is_not_the_checkpoints_own_is_refused(tmp_path):
    interrupted(tmp_path)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step":5,', '"step":6,', 1))
    with pytest.raises(RunLogError, match="does not match the checkpoint"):
        toy_train(tmp_path)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    class Impatient(SignalPatch):
        def gradients(self, model, step):
            super().gradients(model, step)
            super().gradients(model, step)
            raise AssertionError("the second signal raises")

    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, patch=Impatient(0, signal.SIGINT))
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize(("call", "done"), [(1, []), (3, [0, 4]), (7, [0, 4, 8, 12, 16, 20])])
def test_an_interrupted_evaluation_is_made_again(straight, tmp_path, monkeypatch, call, done):
    # the seventh is the final one
    import harness.training_loop

    evaluate, calls = harness.training_loop.evaluate, []

    def interrupt_one(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(harness.training_loop, "evaluate", interrupt_one)
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path)
    assert [row["step"] for row in read_rows(tmp_path, "eval")] == done
    toy_train(tmp_path, config=toy_config())
    assert differences(tmp_path, straight) == []
