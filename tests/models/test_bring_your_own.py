"""The example of docs/bring-your-own-model.md is run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from models.protocol import HOOKS, State, StatefulModel, capabilities
from models.registry import LADDERS, RUNGS, SCALES

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own-model.md"


@pytest.fixture(scope="module")
def factory():
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace: dict = {}
    exec(compile(block, str(PAGE), "exec"), namespace)
    return namespace["factory"]


@pytest.fixture
def model(factory):
    torch.manual_seed(0)
    return factory("3.5M", 50).double()


@pytest.fixture
def tokens_BT():
    return torch.randint(0, 50, (3, 14), generator=torch.Generator().manual_seed(1))


def test_the_example_offers_every_hook_but_activations_and_segments(model):
    assert isinstance(model, StatefulModel)
    assert capabilities(model) == frozenset(HOOKS) - {"activations", "segments"}
    assert tuple(model.branch_modules()) == model.branches == model.init_state(2).branches


def test_the_example_carries_its_state_exactly(model, tokens_BT):
    whole, final = model(tokens_BT, return_states=True)
    first, carried = model(tokens_BT[:, :5], return_states=True)
    second, last = model(tokens_BT[:, 5:], carried, return_states=True)
    exact = {"rtol": 0.0, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **exact)
    for (path, tensor), (_, other) in zip(last.items(), final.items(), strict=True):
        torch.testing.assert_close(tensor, other, **exact, msg=str(path))
    assert (model(tokens_BT[:, 5:]) - second).abs().max() > 1e-3


def test_the_state_of_the_example_is_one_of_ours(model, tokens_BT, tmp_path):
    _, state = model(tokens_BT, return_states=True)
    state.save(tmp_path / "state.safetensors")
    [(path, tensor)] = State.load(tmp_path / "state.safetensors").items()
    assert str(path) == "layers.0.gru.hidden"
    assert tensor.equal(state.layers[0]["gru"]["hidden"])


@pytest.mark.parametrize("scale", [*LADDERS["3.5M"], "3.5M", "8M"])
def test_the_example_has_every_size_that_a_decision_at_its_smallest_scale_asks_for(factory, scale):
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in factory(scale, 16_384).parameters())
    assert abs(total / (RUNGS | SCALES)[scale] - 1) <= 0.02


def test_the_page_lists_the_sizes_that_a_factory_is_asked_for():
    listed = re.findall(r"^\| (\w[\w.]*) \| (.*M) \| (\w*) ?\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    upcoming = [*list(SCALES)[1:], ""]
    assert listed == [(scale, ", ".join(LADDERS[scale]), next_) for scale, next_ in zip(SCALES, upcoming, strict=True)]
