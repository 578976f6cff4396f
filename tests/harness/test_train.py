"""The training loop: what it logs, what it does to the weights, and how it ends."""

import math
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toy import Poison, SignalPatch, ToyModel, toy_config, toy_dataset, toy_train

from harness.checkpoint import CheckpointError, load_weights
from harness.evaluation import evaluate, to_device
from harness.events import Event
from harness.optim import learning_rate, make_optimizer, set_learning_rate
from harness.runlog import read_rows
from harness.runtime import seeded
from harness.train import train
from harness.training_files import checkpoint_directory, read_outcome
from harness.training_job import TrainError, TrainingPatch


def plain_training(steps: int, config) -> tuple[list[dict[str, float]], nn.Module]:
    """The same training written down a second time, as plainly as it can be: the oracle for every logged number."""
    with seeded(3):
        model = ToyModel()
    optimizer, rows, dataset = make_optimizer(model, config.train), [], toy_dataset()
    parameters = list(model.parameters())

    def norm(module_parameters, of):
        return math.sqrt(sum(float((of(p).double() ** 2).sum()) for p in module_parameters))

    with seeded(3, "train"):
        for step in range(steps):
            inputs, targets = dataset.training_batch(3, step, 4, 16)
            logits = model(torch.tensor(inputs.astype(np.int64)))
            log_probs = logits.log_softmax(-1)
            loss = -log_probs.gather(-1, torch.tensor(targets.astype(np.int64))[..., None]).mean()
            optimizer.zero_grad()
            loss.backward()
            row = {"loss": loss.item(), "grad_norm": norm(parameters, lambda p: p.grad)}
            for branch, (module,) in model.branch_modules().items():
                row[f"grad_norm_{branch}"] = norm(module.parameters(), lambda p: p.grad)
                old = [p.detach().clone() for p in module.parameters()]
                row[f"_old_{branch}"] = old
            scale = min(1.0, config.train.clip_norm / (row["grad_norm"] + 1e-6))
            for p in parameters:
                p.grad *= scale
            set_learning_rate(optimizer, learning_rate(step, config.train))
            optimizer.step()
            for branch, (module,) in model.branch_modules().items():
                old = row.pop(f"_old_{branch}")
                change = math.sqrt(
                    sum(
                        float(((p.detach() - o).double() ** 2).sum())
                        for p, o in zip(module.parameters(), old, strict=True)
                    )
                )
                row[f"update_ratio_{branch}"] = change / norm(old, lambda p: p)
            rows.append(row)
    return rows, model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    config = toy_config({"checkpoint_steps": [7, 20], "clip_norm": 3.0})
    model, outcome = toy_train(directory, config=config)
    return directory, config, model, outcome


def test_every_logged_number_is_what_a_plain_loop_computes(trained):
    directory, config, model, _ = trained
    expected, expected_model = plain_training(20, config)
    rows = read_rows(directory, "step")
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row, want in zip(rows, expected, strict=True):
        for name in ("loss", "grad_norm", "grad_norm_rwkv", "grad_norm_mamba"):
            assert row[name] == pytest.approx(want[name], rel=1e-4), (row["step"], name)
        assert row["clipped"] == (want["grad_norm"] > 3.0)
        assert row["lr"] == learning_rate(row["step"] - 1, config.train)
        for branch in ("rwkv", "mamba"):
            if row["step"] % 5 == 0:
                assert row[f"update_ratio_{branch}"] == pytest.approx(want[f"update_ratio_{branch}"], rel=1e-3)
            else:
                assert f"update_ratio_{branch}" not in row
    assert {row["clipped"] for row in rows} == {True, False}, "both kinds of step occur, so that the flag is tested"
    for p, want in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(p, want, rtol=1e-3, atol=1e-5)


def test_the_header_counts_the_parameters_of_each_branch(trained):
    directory, _, model, _ = trained
    (header,) = read_rows(directory, "header")
    assert header["num_params"] == sum(p.numel() for p in model.parameters())
    assert header["num_params_rwkv"] == sum(p.numel() for p in model.recurrent.parameters())
    assert header["num_params_mamba"] == 16 * 16 + 16


def test_validation_runs_at_the_start_on_schedule_and_at_the_end(trained):
    directory, _, model, _ = trained
    evaluations = read_rows(directory, "eval")
    assert [row["step"] for row in evaluations] == [0, 4, 8, 12, 16, 20]
    assert {tuple(row["documents"]) for row in evaluations} == {(0, 1, 2, 3)}, "the windows are always the same"
    assert all(row["tokens"] == sum(row["token_counts"]) == 200 // 16 * 16 for row in evaluations)
    (final,) = read_rows(directory, "final_eval")
    windows = toy_dataset().validation_windows(16, 500 // 16)
    again = evaluate(model, windows, 8)  # the rows of an evaluation batch, on which the last bits depend
    assert final["val_loss"] == again.loss_nats
    assert final["loss_sums"] == again.loss_sums.tolist()
    assert final["val_loss"] < evaluations[0]["val_loss"]


def test_an_evaluation_is_the_mean_over_targets_and_sums_by_document():
    with seeded(5):
        model = ToyModel().double()
    dataset = toy_dataset()
    windows = dataset.validation_windows(16, 9)
    result = evaluate(model, windows, batch_size=4)
    model.eval()
    sums: dict[int, float] = {}
    with torch.no_grad():
        for start, document in zip(windows.starts, windows.documents, strict=True):
            window = torch.tensor(dataset.val.tokens[start : start + 17].astype(np.int64))
            logits = model(window[None, :-1])[0]
            sums[document] = sums.get(document, 0.0) + float(F.cross_entropy(logits, window[1:], reduction="sum"))
    np.testing.assert_allclose(result.loss_sums, [sums[d] for d in result.documents], rtol=1e-5)
    assert result.loss_nats == pytest.approx(sum(sums.values()) / (9 * 16), rel=1e-5)
    assert result.tokens == 9 * 16


def test_evaluation_leaves_the_model_in_its_mode_and_turns_dropout_off():
    with seeded(5):
        model = ToyModel()
    windows = toy_dataset().validation_windows(16, 5)
    model.train()
    assert evaluate(model, windows, 2).loss_nats == evaluate(model, windows, 2).loss_nats
    assert model.training


def test_accumulated_gradients_give_the_same_training(tmp_path):
    # dropout draws differ between one batch and two halves, so it is off here
    outcomes = {}
    for micro_batches in (1, 2):
        with seeded(3):
            model = ToyModel()
        model.dropout.p = 0.0
        config = toy_config({"grad_accumulation": micro_batches})
        train(model, toy_dataset(), config, tmp_path / str(micro_batches), seed=3, device="cpu")
        outcomes[micro_batches] = read_rows(tmp_path / str(micro_batches), "step")
    for one, two in zip(outcomes[1], outcomes[2], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(trained, tmp_path):
    directory, config, model, _ = trained
    again, _ = toy_train(tmp_path / "again", config=config)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert read_rows(tmp_path / "again", "step") == read_rows(directory, "step")
    other, _ = toy_train(tmp_path / "other", config=config, seed=4)
    assert not torch.equal(model.mixer.weight, other.mixer.weight)


def test_a_longer_run_is_the_same_run_until_the_shorter_one_decays(tmp_path):
    # 20 steps of which 4 decay, against 40 steps: 16 rows shared
    toy_train(tmp_path / "short")
    toy_train(tmp_path / "long", config=toy_config({"steps": 40}))
    short, long = read_rows(tmp_path / "short", "step"), read_rows(tmp_path / "long", "step")
    assert short[:16] == long[:16]
    assert short[16]["lr"] < long[16]["lr"]


def test_weights_are_kept_at_the_steps_asked_for(trained):
    directory, _, model, outcome = trained
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["step-000007", "step-000020"]
    last, middle = ToyModel(), ToyModel()
    load_weights(checkpoint_directory(directory, outcome.steps), last)
    load_weights(checkpoint_directory(directory, 7), middle)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), last.parameters(), strict=True))
    assert not torch.equal(middle.mixer.weight, last.mixer.weight)
    assert not (directory / "resume").exists()


def test_a_finished_training_is_not_trained_again(trained):
    directory, config, model, outcome = trained
    log = (directory / "metrics.jsonl").read_bytes()
    fresh, again = toy_train(directory, config=config)
    assert again == outcome
    assert again.status == "finished"
    assert torch.equal(fresh.mixer.weight, model.mixer.weight)
    assert (directory / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("gradient", "steps", "reason"),
    [
        (None, 9, "loss is nan at step 10"),
        (math.inf, 8, "grad_norm is inf at step 9"),
        (math.nan, 8, "grad_norm is nan at step 9"),
    ],
)
def test_a_number_that_is_not_finite_ends_the_training_as_diverged(tmp_path, gradient, steps, reason):
    _, outcome = toy_train(tmp_path, patch=Poison(8, gradient))
    assert (outcome.status, outcome.steps, outcome.reason) == ("diverged", steps, reason)
    assert read_outcome(tmp_path) == outcome
    rows = read_rows(tmp_path, "step")
    assert [row["step"] for row in rows] == list(range(1, steps + 2)), "the row that shows it is the last"
    assert not (tmp_path / "checkpoints").exists()
    _, again = toy_train(tmp_path, patch=Poison(8, gradient))
    assert again == outcome


def test_a_validation_loss_that_is_not_finite_is_a_divergence_too(tmp_path):
    # the weights are poisoned by update 7 (0-based), so the evaluation at step 8 sees it before any loss does
    _, outcome = toy_train(tmp_path, patch=Poison(7, None))
    assert (outcome.status, outcome.steps) == ("diverged", 8)
    assert outcome.reason == "validation loss is nan after 8 updates"


class ShuffledTargets(TrainingPatch):
    name = "shuffled_targets"

    def batch(self, inputs, targets, *, seed, step):
        flat = targets.ravel()
        order = np.random.Generator(np.random.Philox(key=seed, counter=step)).permutation(flat.size)
        return inputs, flat[order].reshape(targets.shape)


def test_a_patch_changes_what_is_learned(tmp_path):
    config = toy_config({"steps": 60, "warmup_steps": 5})
    toy_train(tmp_path / "healthy", config=config)
    toy_train(tmp_path / "patched", config=config, patch=ShuffledTargets())
    (healthy,) = read_rows(tmp_path / "healthy", "final_eval")
    (patched,) = read_rows(tmp_path / "patched", "final_eval")
    assert healthy["val_loss"] < patched["val_loss"] - 0.3


class Rule:
    """STOP at the row of a step; remembers how many rows it saw."""

    def __init__(self, step: int) -> None:
        self.at, self.seen = step, 0

    def observe(self, row):
        self.seen += 1
        hit = row["kind"] == "step" and row["step"] == self.at
        return [Event("STOP", "rule", row["step"], f"seen {self.seen}")] if hit else []

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_a_stop_is_recorded_and_the_run_goes_on(tmp_path):
    _, outcome = toy_train(tmp_path, monitors=[Rule(6)])
    assert (outcome.status, outcome.steps) == ("finished", 20)
    (event,) = read_rows(tmp_path, "event")
    # 6 step rows, the evaluations at 0 and 4 and the probe at 5
    assert event == {"kind": "event", "severity": "STOP", "criterion": "rule", "step": 6, "evidence": "seen 9"}


def test_a_stop_ends_the_run_when_asked_to(tmp_path):
    config = toy_config(monitors={"stop": True})
    model, outcome = toy_train(tmp_path, config=config, monitors=[Rule(6)])
    assert (outcome.status, outcome.steps, outcome.reason) == ("stopped", 6, "rule: seen 9")
    fresh, again = toy_train(tmp_path, config=config, monitors=[Rule(6)])
    assert again == outcome
    assert torch.equal(fresh.mixer.weight, model.mixer.weight)


def test_ctrl_c_finishes_the_step_saves_and_raises(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # a job in the background inherits SIG_IGN
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, patch=SignalPatch(6, signal.SIGINT))
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000007"]
    assert read_outcome(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(toy_train(tmp_path)[1].status))
    thread.start()
    thread.join()
    assert results == ["finished"]


def test_training_leaves_the_random_state_of_the_caller_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    toy_train(tmp_path)
    assert torch.equal(torch.rand(3), expected)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def begin(self, total, done):
        self.calls.append(("begin", total, done))

    def update(self, step, note):
        self.calls.append(("update", step))

    def end(self):
        self.calls.append(("end",))


def test_progress_hears_of_every_step_and_of_the_end(tmp_path):
    recorder = Recorder()
    toy_train(tmp_path, progress=recorder)
    assert recorder.calls == [("begin", 20, 0), *(("update", step) for step in range(1, 21)), ("end",)]


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(TrainError, match="allowed: cpu, cuda"):
        train(ToyModel(), toy_dataset(), toy_config(), tmp_path, seed=0, device="tpu")


def test_another_training_is_not_resumed_by_mistake(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, patch=SignalPatch(6, signal.SIGINT))
    with pytest.raises(CheckpointError, match="seed 3 there, 4 here"):
        toy_train(tmp_path, seed=4)
    with pytest.raises(CheckpointError, match="patch none there, poison here"):
        toy_train(tmp_path, patch=Poison(3, 0.0))


def test_tokens_reach_the_device_as_int64():
    tokens = np.array([[0, 65535]], np.uint16)
    assert to_device(tokens, torch.device("cpu")).tolist() == [[0, 65535]]
