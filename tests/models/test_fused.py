"""The pass for training steps: layers compiled around opaque kernels, weights rounded together; the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import get_model
from models.blocks.parameters import matmul_weights

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def numbers():
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "fused_numbers.py")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["GF-MH", "HGF", "CP", "SEQ-4R10M", "GPT2"])
def test_the_fused_pass_computes_what_the_model_computes(numbers, name):
    found = numbers["double"][name]
    assert found["logits"] < 1e-12
    assert found["gradients"] < 1e-11


def test_layers_of_one_kind_share_one_graph(numbers):
    for name, found in numbers["double"].items():
        assert found["graphs"] == found["kinds_of_layers"], name


def test_only_what_is_not_compiled_is_counted(numbers):
    # the final norm
    assert {found["calls"] for name, found in numbers["double"].items()} == {1}


def test_weights_are_rounded_as_autocast_rounds_them(numbers):
    # no formula of HGF differs under the compiler, so every bit of it can be held against autocast's own
    found = numbers["bf16"]["HGF"]
    assert found["logits"] == 0.0
    assert found["gradients"] < 1e-6
    assert found["from_exact"] > 1e-3, "bf16 shows"


def test_a_formula_of_its_own_under_the_compiler_is_no_less_exact(numbers):
    found = numbers["bf16"]["GF-MH"]
    assert 0 < found["logits"] < 0.03
    assert found["from_exact"] < 1.1 * found["plain_from_exact"]


@pytest.mark.parametrize(("case", "op"), [("forced", "wkv6"), ("wrapped", "ssd")])
def test_no_graph_keeps_what_is_forced_or_wrapped(numbers, case, op):
    assert f"{op} is forced or wrapped now" in numbers[case]


def test_weights_of_products_are_those_that_nothing_else_reads():
    layer = get_model("HGF", vocab_size=64).layers[0]
    found = matmul_weights(layer)
    others = {name for name, _ in layer.named_parameters()} - found.keys()
    assert {name.rpartition(".")[2] for name in others} == {
        "weight",  # of the norms
        *("maa_x", "maa", "time_decay", "bonus", "norm_weight", "norm_bias"),
        *("conv_weight", "conv_bias", "dt_bias", "A_log", "D"),
    }
    assert not any("norm" in name for name in found)
    # one gate a position is a sum, not a product
    assert not any("fusion" in name for name in matmul_weights(get_model("GF", vocab_size=64).layers[0]))
