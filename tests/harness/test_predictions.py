"""A prediction is dated, found again, never changed, and worth nothing when it comes after the run."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from harness.graduation.predictions import FILE, KIND, PredictionError, register, require_before
from harness.runlog import BEGAN, RunLog, RunLogError, read_beginning
from harness.store import Store, StoreError

QUANTITY = "loss of TOY at 3.5M, nats/token"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def predict(store, value=6.0, width=0.1, **fields):
    return register(store, QUANTITY, {"scale": "3.5M", **fields}, value, value - width, value + width, ["ab12", "cd34"])


def test_the_same_inputs_find_the_same_entry_with_its_date(store):
    first, again = predict(store), predict(Store(store.root))

    assert again == first
    assert len(store.paths()) == 1
    assert (first.value, first.low, first.high) == (6.0, 5.9, 6.1)
    assert first.made_from == ("ab12", "cd34")
    assert datetime.fromisoformat(first.registered).tzinfo is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first.registered)) < timedelta(minutes=1)


def test_other_inputs_are_another_prediction(store):
    assert predict(store).sha256 != predict(store, tokens=1000).sha256
    assert {path.parent.name for path in store.paths()} == {KIND}
    assert len(store.paths()) == 2


def test_a_prediction_is_never_changed(store):
    predict(store)
    predict(store, value=6.0 + 1e-9)  # another machine's rounding
    with pytest.raises(PredictionError, match=r"with value 6, and the same inputs now give 6\.2; .* never changed"):
        predict(store, value=6.2)
    with pytest.raises(PredictionError, match=r"with low 5\.9, and the same inputs now give 5\.5"):
        predict(store, width=0.5)


def test_an_edited_file_is_refused(store):
    predict(store)
    file = store.paths()[0] / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "value": 5.95}))
    with pytest.raises(StoreError, match="damaged"):
        predict(Store(store.root))


def test_an_edited_manifest_is_refused(store):
    predict(store)
    manifest = store.paths()[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("3.5M", "8.0M"))
    with pytest.raises(StoreError, match="do not hash"):
        predict(Store(store.root))


@pytest.mark.parametrize(
    ("value", "low", "high"), [(float("nan"), 0, 1), (1, 0, float("inf")), (2, 0, 1), (0.5, 0.6, 1)]
)
def test_what_is_no_prediction_is_refused(store, value, low, high):
    with pytest.raises(PredictionError, match="a finite value inside a finite interval"):
        register(store, QUANTITY, {}, value, low, high, [])
    assert not store.root.exists()


def test_a_prediction_must_be_older_than_the_run(store):
    prediction = predict(store)
    registered = datetime.fromisoformat(prediction.registered)

    require_before(prediction, registered + timedelta(microseconds=1))
    for late in (timedelta(0), timedelta(microseconds=1), timedelta(days=1)):
        with pytest.raises(PredictionError, match=r"but the run of seed 7 began on .*: this predicts nothing"):
            require_before(prediction, registered - late, "the run of seed 7")


def test_a_training_says_when_it_began(store, tmp_path):
    before = predict(store)
    log = RunLog(tmp_path)
    log.write({"kind": "header"})
    position = log.position
    log.close()
    began = read_beginning(tmp_path)
    require_before(before, began)
    with pytest.raises(PredictionError):
        require_before(predict(store, tokens=1), began)

    # one that is resumed began once
    RunLog(tmp_path, position).close()
    assert read_beginning(tmp_path) == began


@pytest.mark.parametrize("text", [None, "yesterday", "2024-05-01T12:00:00"])
def test_a_training_that_does_not_say_when_it_began_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / BEGAN).write_text(text)
    with pytest.raises(RunLogError, match="train it again"):
        read_beginning(tmp_path)
