"""A loss beside the naive models: their own losses lie where they must, and other windows are refused."""

import pytest

from harness import known_answers_baselines as known
from harness.data import Windows
from harness.dynamics import naive_ratio
from harness.metrics.baselines import naive_losses
from harness.naive_margins import naive_margins


@pytest.mark.parametrize(
    "function",
    [known.naive_models_lie_where_they_must, known.the_difference_to_the_bigram_is_paired],
    ids=lambda f: f.__name__,
)
def test_known_answer_holds(function):
    function()


def test_losses_on_other_windows_are_refused():
    split = known.cycle()
    naive = naive_losses(split, Windows.of(split, 16, 100), known.VOCAB)
    other = naive_losses(split, Windows.of(split, 16, 50), known.VOCAB)
    with pytest.raises(ValueError, match="same windows"):
        naive_margins(naive_ratio(other["unigram"]), naive, seed=0)
