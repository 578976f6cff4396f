"""Raw ratios before any training: where one exists it is that of the true states, and where none does that is said."""

import math

import numpy as np
import pytest
import torch

from harness.data import Split, Windows
from harness.raw_balance import log_spread, raw_balance
from harness.reparametrise import STATE_FACTOR
from harness.sufficiency import wake
from models import get_model

VOCAB, LENGTH = 97, 24


def fresh(name="GF-MH"):
    torch.manual_seed(0)
    return get_model(name, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def windows():
    tokens = np.random.default_rng(2).integers(0, VOCAB, size=2 * (LENGTH + 1)).astype(np.uint16)
    starts = np.arange(2, dtype=np.int64) * (LENGTH + 1)
    return Windows(Split(tokens, np.array([0, len(tokens)]), ("all",), 0), LENGTH, starts, np.arange(2))


def test_a_fresh_rwkv_puts_out_nothing_so_its_outputs_have_no_ratio_and_its_states_have_one(windows):
    found = raw_balance(fresh(), windows, device="cpu")
    assert math.isnan(found.output_variance_ratio)
    assert found.silent_outputs == ("rwkv",)
    assert found.write_over_residual["rwkv"] == dict.fromkeys(range(4), 0.0)
    with torch.no_grad():
        inputs, _, _ = next(windows.batches(2))
        _, state = fresh()(torch.from_numpy(inputs.astype(np.int64)), return_states=True)
    states = {
        branch: [t.double().flatten() for p, t in state.long_items() if p.branch == branch] for branch in found.branches
    }
    first, second = (torch.cat(states[branch]).var(correction=0) for branch in found.branches)
    assert found.state_variance_ratio == pytest.approx(float(first / second), rel=1e-6)
    assert found.enlarged_variance_ratio / found.state_variance_ratio == pytest.approx(STATE_FACTOR**2)
    assert found.enlarged_logit_change == 0


def test_a_woken_model_has_every_ratio(windows):
    # the negative control: what is silent above is the zero matrix and not the measurement
    found = raw_balance(wake(fresh()), windows, device="cpu")
    assert found.silent_outputs == ()
    assert 0 < found.output_variance_ratio < math.inf


def test_the_spread_over_seeds_is_of_the_log_and_needs_a_ratio_of_each():
    assert log_spread([10.0, 1000.0]) == pytest.approx(math.sqrt(2) * math.log(10))
    assert log_spread([1 / 10, 1 / 1000]) == pytest.approx(math.sqrt(2) * math.log(10))
    for ratios in ([10.0], [10.0, math.nan, 11.0], [10.0, None], [10.0, 0.0], [10.0, math.inf], []):
        assert log_spread(ratios) is None
