"""Generation: the same with a state and without, whatever is asked beside it; and what is drawn is what was likely."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from harness.generate import GenerationError, generate
from harness.runtime import seeded
from harness.sufficiency import wake
from models import get_model
from models.protocol import capabilities

VOCAB = 300
PROMPTS = ([5, 9, 12], [7], [1, 2, 3], [4, 4])
DRAWN = {"tokens": 6, "seed": 3, "device": "cpu", "count": 2, "temperature": 0.9, "top_p": 0.95}


class WithoutState(nn.Module):
    """A model of which nothing but logits is known."""

    def __init__(self, model):
        super().__init__()
        self.model, self.longest = model, 0

    def forward(self, tokens_BT):
        self.longest = max(self.longest, tokens_BT.shape[1])
        return self.model(tokens_BT)


class Fixed(nn.Module):
    """Says the same of every next token."""

    def __init__(self, p):
        super().__init__()
        self.logits_V = torch.as_tensor(p, dtype=torch.float64).log()

    def forward(self, tokens_BT):
        return self.logits_V.expand(*tokens_BT.shape, -1)


@pytest.fixture(scope="module", params=["GF-MH", "GPT2"])
def model(request):
    with seeded(0):
        return wake(get_model(request.param, "3.5M", VOCAB)).eval()


@pytest.fixture(scope="module")
def hybrid():
    with seeded(0):
        return wake(get_model("GF-MH", "3.5M", VOCAB)).eval()


def ids(found):
    return [each.ids for each in found]


def test_a_state_changes_nothing(model):
    bare = WithoutState(model)
    assert "state" in capabilities(model)
    assert "state" not in capabilities(bare)
    carried, whole = generate(model, PROMPTS, **DRAWN), generate(bare, PROMPTS, **DRAWN)
    assert ids(carried) == ids(whole)
    for one, other in zip(carried, whole, strict=True):
        assert one.log_p == pytest.approx(other.log_p, abs=1e-4)
    assert bare.longest == 3 + DRAWN["tokens"] - 1


def test_every_prompt_has_its_continuations_in_order(hybrid):
    found = generate(hybrid, PROMPTS, **DRAWN)
    assert [each.prompt for each in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {len(each.ids) for each in found} == {len(each.log_p) for each in found} == {DRAWN["tokens"]}
    assert found[0].ids != found[1].ids


def test_what_is_said_to_one_prompt_does_not_depend_on_the_others(hybrid):
    together, alone = generate(hybrid, PROMPTS, **DRAWN), generate(hybrid, PROMPTS[:2], **DRAWN)
    assert ids(together[:4]) == ids(alone)


def test_the_seed_decides(hybrid):
    first, again = generate(hybrid, PROMPTS, **DRAWN), generate(hybrid, PROMPTS, **DRAWN)
    assert first == again
    assert ids(generate(hybrid, PROMPTS, **DRAWN | {"seed": 4})) != ids(first)


def test_greedy_text_needs_no_seed(hybrid):
    greedy = DRAWN | {"temperature": 0.0, "count": 1}
    found = generate(hybrid, PROMPTS[:1], **greedy)
    assert ids(found) == ids(generate(hybrid, PROMPTS[:1], **greedy | {"seed": 4}))
    read = list(PROMPTS[0])
    for token, log_p in zip(found[0].ids, found[0].log_p, strict=True):
        with torch.no_grad():
            scores = hybrid(torch.tensor([read]))[0, -1].double().log_softmax(-1)
        assert token == int(scores.argmax())
        assert log_p == pytest.approx(float(scores.max()), abs=1e-4)
        read.append(token)


def test_tokens_come_as_often_as_they_are_likely():
    p = np.array([0.6, 0.3, 0.1])
    [found] = generate(Fixed(p), [[0]], tokens=3000, seed=0, device="cpu")
    shares = np.bincount(found.ids, minlength=3) / 3000
    # four standard errors
    assert np.abs(shares - p).max() < 4 * math.sqrt(0.25 / 3000)
    # what each token cost is that of the model as it is
    [sharp] = generate(Fixed(p), [[0]], tokens=50, seed=0, device="cpu", temperature=0.5, top_p=0.5)
    assert set(sharp.ids) == {0}
    assert sharp.log_p == pytest.approx([math.log(0.6)] * 50)


def test_a_model_without_a_distribution_is_refused():
    with pytest.raises(GenerationError, match=r"after 0 generated tokens: .*NaN"):
        generate(Fixed([math.nan, 0.5]), [[0]], tokens=3, seed=0, device="cpu")


def test_the_model_is_left_as_it_was(hybrid):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    hybrid.train()
    try:
        generate(hybrid, PROMPTS, **DRAWN)
        assert hybrid.training
    finally:
        hybrid.eval()
    assert torch.equal(before, torch.get_rng_state())
