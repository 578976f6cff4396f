"""The remedies for an unused branch: off they change no bit, on they do what they say, elsewhere they are refused."""

import json

import pytest
import torch
from toy import VOCAB, ToyModel, toy_config, toy_dataset

import kernels
from harness.config import ConfigError, validate_config
from harness.evaluation import to_device
from harness.known_answers_remedies import Leaky
from harness.metrics.gradients import gradient_norms
from harness.optim import learning_rate, make_optimizer, set_learning_rate
from harness.remedies import RemedyError, Treatment, asked_for
from harness.runlog import read_rows
from harness.runtime import configure_cpu, seeded
from harness.step import StepError, TrainingStep, choose
from harness.train import train
from models import get_model
from models.fusion.base import Fusion

BOTH = {"state_grad_clip": 1e-2, "coupling_loss": 1e-2}


def hybrid():
    with seeded(3):
        return get_model("GF-MH", scale="1.2M", vocab_size=VOCAB)


def config(**options):
    return toy_config(options).train


def batches(count):
    return [toy_dataset().training_batch(3, step, 4, 16) for step in range(count)]


def test_off_an_update_is_what_it_was_bit_by_bit():
    step = TrainingStep(hybrid(), config(), dtype=torch.float32)
    assert step.forward is step.model
    found = [step(*batch, index).tolist() for index, batch in enumerate(batches(4))]

    model, options = hybrid(), config()
    optimizer, parameters = make_optimizer(model, options), list(model.parameters())
    for index, batch in enumerate(batches(4)):
        inputs, targets = (to_device(part, torch.device("cpu")) for part in batch)
        set_learning_rate(optimizer, learning_rate(index, options))
        loss = kernels.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        norm, _ = gradient_norms(parameters, {})
        torch.nn.utils.clip_grads_with_norm_(parameters, options.clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad()
        assert found[index][:2] == [loss.item(), norm.item()]
    for ours, plain in zip(step.model.parameters(), parameters, strict=True):
        assert torch.equal(ours, plain)
    # negative control: with either remedy it is another training
    for name, value in BOTH.items():
        other = TrainingStep(hybrid(), config(**{name: value}), dtype=torch.float32)
        assert [other(*batch, index).tolist() for index, batch in enumerate(batches(4))][-1][0] != found[-1][0]


def gradients(model, treatment, parts=1):
    model.zero_grad()
    inputs, targets = (to_device(part, torch.device("cpu")) for part in batches(1)[0])
    for rows in torch.arange(len(inputs)).chunk(parts):
        loss = torch.nn.functional.cross_entropy(treatment.read(inputs[rows]).flatten(0, 1), targets[rows].flatten())
        treatment.add_to(loss / parts).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def awake():
    """A hybrid in fp64 whose RWKV-6 output matrices are not zero, so that both states are read."""
    model = hybrid().double()
    with seeded(8), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def distance(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_a_limit_that_is_never_reached_leaves_the_gradients_of_the_whole_row():
    model = awake()
    whole = gradients(model, Treatment(model, config()))
    halves = Treatment(model, config(state_grad_clip=1e6))
    assert distance(gradients(model, halves), whole) < 1e-12
    assert halves.report()[0] == 0
    tight = Treatment(model, config(state_grad_clip=1e-9))
    assert distance(gradients(model, tight), whole) > 1e-6
    assert tight.report()[0] == 1
    assert torch.isnan(tight.report()[0]), "a report starts the count anew"


def test_micro_batches_are_clipped_as_the_whole_batch_is():
    model = awake()
    clipped = {"state_grad_clip": 3e-3}
    whole = Treatment(model, config(**clipped))
    parts = Treatment(model, config(**clipped, grad_accumulation=2))
    assert distance(gradients(model, whole), gradients(model, parts, parts=2)) < 1e-12
    assert whole.report() == parts.report()
    assert distance(gradients(model, Treatment(model, config())), gradients(model, whole)) > 1e-9


@pytest.mark.parametrize("halves", [{}, {"state_grad_clip": 1e6}], ids=["whole rows", "halves"])
def test_the_coupling_loss_is_of_the_writes_that_the_activations_show(halves):
    model = awake()
    treatment = Treatment(model, config(coupling_loss=0.5, **halves))
    tokens = to_device(batches(1)[0][0], torch.device("cpu"))
    with torch.no_grad():
        treatment.read(tokens)
        added = treatment.add_to(torch.zeros((), dtype=torch.float64))
        _, activations = model(tokens, return_activations=True)
    gaps = []
    for layer in activations.layers:
        rwkv, mamba = (layer.writes[branch].square().mean() for branch in ("rwkv", "mamba"))
        floor = 1e-6 * (rwkv + mamba)
        gaps.append((0.5 * ((rwkv + floor) / (mamba + floor)).log()) ** 2)
    assert float(added) == pytest.approx(0.5 * float(sum(gaps)) / len(gaps), rel=1e-9)
    assert float(added) > 1e-3
    assert float(treatment.report()[-1]) == pytest.approx(2 * float(added), rel=1e-6)


def test_no_hook_stays_behind():
    model = hybrid()
    fusions = [module for module in model.modules() if isinstance(module, Fusion)]
    Treatment(model, config(coupling_loss=0.5)).read(torch.zeros(1, 4, dtype=torch.int64))
    assert fusions
    assert not any(fusion._forward_hooks for fusion in fusions)


def test_a_branch_that_writes_nothing_yet_has_finite_gradients():
    # as RWKV-6 is at the start
    model = hybrid()
    treatment = Treatment(model, config(**BOTH))
    found = gradients(model, treatment)
    assert all(bool(torch.isfinite(grad).all()) for grad in found)
    assert float(treatment.report()[1]) > 40, "and a gap of nearly a thousand to one"


def test_models_without_states_or_writes_are_refused():
    with pytest.raises(RemedyError, match=r"train\.state_grad_clip 0\.01: ToyModel takes and returns no state"):
        Treatment(ToyModel(), config(state_grad_clip=1e-2))
    with pytest.raises(RemedyError, match=r"train\.coupling_loss 0\.01: ToyModel has no layer with two parallel"):
        Treatment(ToyModel(), config(coupling_loss=1e-2))
    with pytest.raises(RemedyError, match="has no layer with two"):
        Treatment(get_model("RWKV6", scale="1.2M", vocab_size=VOCAB), config(coupling_loss=1e-2))
    Treatment(get_model("RWKV6", scale="1.2M", vocab_size=VOCAB), config(state_grad_clip=1e-2))
    with pytest.raises(RemedyError, match="Leaky calls none of its fusions"):
        Treatment(Leaky(), config(coupling_loss=1e-2)).add_to(torch.zeros(()))


def test_updates_are_eager_and_say_why():
    for options, reason in (
        ({"state_grad_clip": 1e-2}, r"train\.state_grad_clip needs"),
        ({"coupling_loss": 1e-2}, r"train\.coupling_loss needs"),
        (BOTH, r"train\.state_grad_clip and train\.coupling_loss needs"),
    ):
        choice = choose(hybrid(), config(**options), "cuda")
        assert choice.mode == "eager"
        with pytest.raises(StepError, match=reason):
            choose(hybrid(), config(**options, execution="graphed"), "cuda")
    assert asked_for(config()) == ""
    assert choose(hybrid(), config(), "cuda").mode == "graphed"


def test_rows_of_one_token_have_no_halves():
    raw = json.loads(toy_config().model_dump_json())
    raw["data"]["seq_len"], raw["train"]["state_grad_clip"] = 1, 0.1
    with pytest.raises(ConfigError, match=r"cuts every row in halves, but data\.seq_len is 1"):
        validate_config(raw, "toy")


def trained(directory, *, steps, **options):
    configure_cpu(toy_config().train.threads)  # weights are drawn as many threads wide as the trainings are
    model = hybrid()
    settings = {"steps": steps, "warmup_steps": 2, "decay_fraction": 0.25, "checkpoint_steps": [], **BOTH}
    outcome = train(model, toy_dataset(), toy_config(settings), directory, seed=3, device="cpu", **options)
    assert outcome.status == "finished"
    return model


def test_a_longer_training_with_remedies_begins_as_a_shorter_one(tmp_path):
    trained(tmp_path / "short", steps=8, keeps_beginning=True)
    begun = trained(tmp_path / "begun", steps=12, begins_as=tmp_path / "short")
    whole = trained(tmp_path / "whole", steps=12)
    assert (tmp_path / "begun" / "beginning.json").is_file()
    for ours, scratch in zip(begun.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, scratch)
    rows = [read_rows(tmp_path / name, "step") for name in ("begun", "whole")]
    assert rows[0] == rows[1]
    assert {"state_grad_clipped", "coupling_loss"} <= rows[0][-1].keys()
    assert 0 < rows[0][-1]["state_grad_clipped"] <= 1


def test_a_training_that_cannot_be_treated_is_refused_before_it_begins(tmp_path):
    with pytest.raises(RemedyError, match="takes and returns no state"):
        train(ToyModel(), toy_dataset(), toy_config({"state_grad_clip": 0.1}), tmp_path / "run", seed=3, device="cpu")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
