import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import DataError, Split, TokenDataset, Windows


def split_of(lengths: list[int]) -> Split:
    """Documents of these lengths; token i of the split is i, so that a window shows where it was taken."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(offsets[-1]).astype(np.uint16)
    return Split(tokens, offsets, tuple(f"d{i}" for i in range(len(lengths))), num_bytes=0)


def dataset_of(lengths: list[int]) -> TokenDataset:
    return TokenDataset("toy", split_of(lengths), split_of(lengths), 65535, "c", "t", embedded=False)


def test_the_batch_of_a_step_depends_on_seed_and_step_alone():
    data = dataset_of([1000])
    for step in (3, 1, 2):
        data.training_batch(seed=7, step=step, batch_size=4, length=16)
    inputs, targets = data.training_batch(seed=7, step=3, batch_size=4, length=16)
    again, _ = dataset_of([1000]).training_batch(seed=7, step=3, batch_size=4, length=16)

    assert inputs.shape == targets.shape == (4, 16)
    np.testing.assert_array_equal(inputs, again)
    np.testing.assert_array_equal(targets, inputs + 1)
    assert not np.array_equal(inputs, data.training_batch(seed=7, step=4, batch_size=4, length=16)[0])
    assert not np.array_equal(inputs, data.training_batch(seed=8, step=3, batch_size=4, length=16)[0])


def test_training_windows_reach_the_first_and_the_last_token_and_no_further():
    data = dataset_of([20])
    starts = {
        int(row[0]) for step in range(40) for row in data.training_batch(seed=0, step=step, batch_size=8, length=16)[0]
    }
    assert starts == {0, 1, 2, 3}


def test_training_steps_do_not_share_their_random_numbers():
    data = dataset_of([60000])
    steps = [data.training_batch(seed=0, step=step, batch_size=16, length=4)[0][:, 0] for step in range(64)]
    # 1024 draws out of 60 thousand: 8.7 repeats expected, Poisson
    assert len(np.unique(np.concatenate(steps))) > 1024 - 30


def test_a_training_split_shorter_than_a_window_is_refused_with_what_to_set():
    with pytest.raises(DataError, match=r"toy: the training split has 16 tokens, fewer than one window of 17.*seq_len"):
        dataset_of([16]).training_batch(seed=0, step=0, batch_size=1, length=16)
    dataset_of([17]).training_batch(seed=0, step=0, batch_size=1, length=16)


lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 12))
def test_windows_stay_inside_documents_do_not_overlap_and_leave_nothing_out(lengths, length):
    split = split_of(lengths)
    # inputs at positions 0..n-2 of a document have a target; whole windows of them are taken
    expected = sum((n - 1) // length for n in lengths)
    if not expected:
        with pytest.raises(DataError, match=r"no document of this split has a window"):
            Windows.of(split, length, 10**6)
        return
    windows = Windows.of(split, length, 10**6)

    assert len(windows) == expected
    seen = []
    for inputs, targets, documents in windows.batches(3):
        np.testing.assert_array_equal(targets, inputs + 1)
        for row, target, document in zip(inputs, targets, documents, strict=True):
            assert split.offsets[document] <= row[0]
            assert target[-1] < split.offsets[document + 1]
            seen.extend(row.tolist())
    assert len(seen) == len(set(seen)) == expected * length


@settings(deadline=None)
@given(lengths_of_documents, st.integers(1, 30))
def test_thinned_windows_are_distinct_and_keep_both_ends(lengths, wanted):
    split = split_of([*lengths, 50])
    everything = Windows.of(split, 4, 10**6)
    thinned = Windows.of(split, 4, wanted)

    assert len(thinned) == len(np.unique(thinned.starts)) == min(wanted, len(everything))
    assert set(thinned.starts) <= set(everything.starts)
    assert thinned.starts[0] == everything.starts[0]
    if wanted > 1:
        assert thinned.starts[-1] == everything.starts[-1]


def test_windows_count_the_documents_they_come_from():
    windows = Windows.of(split_of([10, 2, 10]), 4, 100)
    assert windows.documents.tolist() == [0, 0, 2, 2]
    assert windows.num_documents == 2
