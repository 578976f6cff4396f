"""How an update is taken: the choice and its reasons, and that compiled updates train as eager ones do."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import VOCAB, SignalPatch, ToyModel, toy_config, toy_train

from harness.runlog import read_rows
from harness.runtime import seeded
from harness.step import StepError, TrainingStep, choose, exact_float32
from harness.training_job import NO_PATCH, TrainingPatch
from kernels import backends
from models import get_model

HERE = Path(__file__).parent


def hybrid() -> nn.Module:
    return get_model("GF-MH", scale="1.2M", vocab_size=VOCAB)


def config(**options):
    return toy_config(options).train


# --- the choice -------------------------------------------------------------------------------------------------------


def test_a_model_of_the_registry_is_graphed_on_a_gpu():
    choice = choose(hybrid(), config(), "cuda")
    assert choice.mode == "graphed"
    assert "capturable_forward" in choice.reason


def hooked() -> nn.Module:
    model = hybrid()
    model.layers[1].norm.register_forward_hook(lambda *_: None)
    return model


def rewritten() -> nn.Module:
    model = hybrid()
    model.forward = lambda tokens_BT: None
    return model


def watched() -> nn.Module:
    model = hybrid()
    model.final_norm.weight.register_hook(lambda grad: None)
    return model


def derived() -> nn.Module:
    model = hybrid()

    class Odd(type(model)):
        def forward(self, *arguments, **options):
            return super().forward(*arguments, **options)

    model.__class__ = Odd
    return model


def derived_with_both() -> nn.Module:
    model = derived()

    class Sound(type(model)):
        def forward(self, *arguments, **options):
            return super().forward(*arguments, **options)

        def capturable_forward(self, compiler="inductor"):
            return self

    model.__class__ = Sound
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (ToyModel, "ToyModel offers no capturable_forward"),
        (hooked, r"layers\.1\.norm has hooks"),
        (rewritten, "HybridModel has a forward of its own"),
        (watched, r"final_norm\.weight has hooks"),
        (derived, "Odd overrides forward, but not capturable_forward"),
    ],
)
def test_a_model_whose_pass_may_be_another_is_trained_eagerly(build, reason):
    choice = choose(build(), config(), "cuda")
    assert choice.mode == "eager"
    with pytest.raises(StepError, match=rf"train\.execution=graphed: {reason}"):
        choose(build(), config(execution="graphed"), "cuda")


def test_a_model_that_overrides_both_passes_is_graphed():
    assert choose(derived_with_both(), config(), "cuda").mode == "graphed"


def test_a_cpu_trains_eagerly_and_refuses_a_graph():
    choice = choose(hybrid(), config(), "cpu")
    assert (choice.mode, choice.reason) == ("eager", "CUDA graphs need a GPU, and this is cpu")
    with pytest.raises(StepError, match=r"--set train\.execution=auto"):
        choose(hybrid(), config(execution="graphed"), "cpu")


def test_a_patch_that_looks_inside_an_update_is_named():
    assert choose(hybrid(), config(), "cuda", patch="poison").reason.startswith("the patch poison changes gradients")


def test_eager_on_demand():
    choice = choose(hybrid(), config(execution="eager"), "cuda")
    assert (choice.mode, choice.reason) == ("eager", "train.execution is eager")


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (lambda: backends.force("ssd", "chunked"), "ssd is forced or wrapped"),
        (lambda: backends.wrap("causal_conv1d", lambda kernel: kernel), "causal_conv1d is forced or wrapped"),
    ],
)
def test_a_kernel_that_is_not_the_selected_one_is_kept_out_of_a_graph(context, reason):
    with context():
        choice = choose(hybrid(), config(), "cuda")
    assert choice.mode == "eager"
    assert choice.reason.startswith(reason)
    assert choose(hybrid(), config(), "cuda").mode == "graphed"


@pytest.fixture
def selection():
    backends.select.cache_clear()
    yield
    backends.select.cache_clear()


@pytest.mark.usefixtures("selection")
def test_a_reference_is_not_unrolled_into_a_graph(monkeypatch):
    monkeypatch.setenv("GROUNDTHINK_WKV6", "reference")
    choice = choose(hybrid(), config(), "cuda")
    assert choice.mode == "eager"
    assert choice.reason.startswith("wkv6 runs on its reference")


def test_what_a_patch_overrides_decides_whether_it_looks_inside():
    class Batches(TrainingPatch):
        def batch(self, inputs, targets, *, seed, step):
            return targets, inputs

    class Weights(TrainingPatch):
        def after_step(self, model, step):
            pass

    assert [patch.looks_inside for patch in (NO_PATCH, Batches(), SignalPatch(1, 2), Weights())] == [
        False, False, True, True,
    ]  # fmt: skip


def test_the_header_says_how_updates_are_taken_and_why(tmp_path):
    toy_train(tmp_path)
    (header,) = read_rows(tmp_path, "header")
    assert header["execution"] == "eager"
    assert header["execution_reason"] == "CUDA graphs need a GPU, and this is cpu"


# --- the update -------------------------------------------------------------------------------------------------------


def test_fp32_products_are_exact_inside_and_as_before_outside():
    for outside in ("high", "highest"):
        torch.set_float32_matmul_precision(outside)
        with exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == outside


def test_hooks_see_gradients_before_clipping_and_weights_after_the_update():
    with seeded(3):
        model = ToyModel()
    seen = []

    def before_clip(_, step):
        seen.append((step, float(model.mixer.weight.grad.norm()), model.mixer.weight.detach().clone()))

    def after_update(_, step):
        seen.append((step, model.mixer.weight.grad, model.mixer.weight.detach().clone()))

    step = TrainingStep(
        model, config(clip_norm=1e-3), dtype=torch.float32, before_clip=before_clip, after_update=after_update
    )
    values = dict(zip(step.names, step(*[torch.arange(64).view(4, 16).numpy() % VOCAB] * 2, 0).tolist(), strict=True))
    (_, norm, before), (_, grad, after) = seen
    assert values["grad_norm"] > norm > 1e-3, "not clipped yet"
    assert grad is None
    assert not torch.equal(before, after)


def test_a_graph_has_no_place_for_hooks():
    with pytest.raises(AssertionError, match="no place for hooks"):
        TrainingStep(hybrid(), config(), dtype=torch.float32, mode="graphed", after_update=lambda *_: None)


@pytest.fixture(scope="module")
def trained():
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "fused_training.py")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in json.loads(done.stdout).items()
    }


def largest_difference(one, other) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_compiled_updates_train_as_eager_ones_do(trained):
    eager, compiled = trained["eager"], trained["compiled"]
    assert eager["loss"][0] - eager["loss"][-1] > 0.3, "there is something to compare"
    for name in eager:
        assert largest_difference(compiled[name], eager[name]) < 1e-3, name
    assert largest_difference(trained["accumulated"]["loss"], eager["loss"]) < 1e-3


def test_in_bf16_compiling_changes_less_than_another_seed_does(trained):
    eager, compiled, seed = (trained[name]["loss"] for name in ("eager_bf16", "compiled_bf16", "other_seed_bf16"))
    assert largest_difference(compiled, eager) < 0.2 * largest_difference(seed, eager)
    assert not math.isclose(eager[-1], trained["eager"]["loss"][-1], rel_tol=1e-6), "bf16 shows"
