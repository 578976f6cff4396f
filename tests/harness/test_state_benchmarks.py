"""Use of the state beyond its known answers: resets before every turn, and what a broken reading would say."""

import numpy as np
import pytest
import torch

from fixtures.synthetic import VariablesConfig
from harness import state_benchmarks
from harness.checks import load_checks
from harness.known_answers import registered
from harness.known_answers_state_use import KEYS, VALUES, Lookup, recall_examples
from harness.labelled import IGNORED
from harness.labelled_training import predictions, right_shares
from harness.metrics import known_answers_efficiency, recall_efficiency
from harness.metrics.intervals import Interval
from harness.metrics.recall_efficiency import Recall, smallest_state
from harness.state_benchmarks import use_of_state

AT = {"device": "cpu", "dtype": torch.float32}
USE = {entry.name: entry.function for check in ("SB1", "SB2") for entry in registered(load_checks()[check])}
EFFICIENCY = {entry.name: entry.function for entry in registered(load_checks()["SB3"])}


def fails(function):
    try:
        function()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", [*USE, *EFFICIENCY])
def test_known_answer_holds(name):
    (USE | EFFICIENCY)[name]()


def test_a_reset_that_resets_nothing_fails_a_known_answer(monkeypatch):
    def keeps(model, examples, *, device, dtype):
        return np.where(examples.asked, examples.labels, IGNORED)

    monkeypatch.setattr(state_benchmarks, "predictions", keeps)
    assert any(fails(function) for function in USE.values())


def test_bits_in_nats_or_bytes_for_bits_fail_a_known_answer(monkeypatch):
    monkeypatch.setattr(recall_efficiency.math, "log2", recall_efficiency.math.log)
    assert any(fails(function) for function in EFFICIENCY.values())
    monkeypatch.undo()
    monkeypatch.setattr(known_answers_efficiency, "Recall", lambda p, v, a, size: Recall(p, v, a, 8 * size))
    assert any(fails(function) for function in EFFICIENCY.values())


def test_a_reset_before_each_turn_is_read():
    examples = recall_examples(300, changes=2)
    use = use_of_state(Lookup(KEYS + VALUES, latest=True), examples, seed=0, **AT)
    assert list(use.reset) == [1, 2]
    # half of the keys were told anew after the first reset
    assert use.reset[1].value == pytest.approx(0.5, abs=0.05)
    assert use.reset[2].value == 0.0
    assert use.gain.n == 300


def test_the_gain_is_paired_by_example():
    examples = recall_examples(300, changes=2)
    model = Lookup(KEYS + VALUES, latest=False)
    use = use_of_state(model, examples, seed=0, **AT)
    shares = right_shares(predictions(model, examples, **AT), examples.labels)
    assert use.gain.value == pytest.approx(shares.mean())
    # the reset is wrong throughout, so the interval is that of the shares themselves
    half = 1.645 * shares.std(ddof=1) / np.sqrt(len(shares))
    assert use.gain.high - use.gain.low == pytest.approx(2 * half, rel=0.1)


def test_variables_can_be_read():
    task = VariablesConfig(copies=0.0)
    use = use_of_state(Lookup(task.vocab_size, latest=True), task.examples(50, 0), seed=0, **AT)
    assert list(use.reset) == [1, 2, 3]


def test_smallest_states_are_of_one_task():
    sure = Interval(1.0, 1.0, 1.0, 10, 10)
    with pytest.raises(ValueError, match="different numbers of pairs"):
        smallest_state([Recall(4, 64, sure, 64), Recall(8, 64, sure, 64)])


def test_the_efficiency_carries_the_interval_of_the_accuracy():
    found = Recall(8, 64, Interval(0.9, 0.8, 0.95, 100, 100), 1024).per_state_bit
    assert found.low < found.value < found.high
    assert found.value == pytest.approx((0.9 - 1 / 64) / (1 - 1 / 64) * 48 / 8192)
