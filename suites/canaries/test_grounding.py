"""GROUNDING: what is said comes of what was told: recalled, not made up, not contradicted. Judged from 30M on."""

import pytest

pytestmark = pytest.mark.check("GROUNDING")

ITEMS = {("3.5M", "cpu"): 80}
"""Items of each of the three shares, by scale and device; what follows where nothing is said."""
ALL_ITEMS = 400


@pytest.fixture
def groundings(bench, taught, words):
    """``(reading, where)`` of everything taught."""
    from fixtures.dialogues.grounding import make_grounding
    from harness.grounding import GroundingReading, read_grounding

    count = ITEMS.get((bench.subject.scale, bench.device), ALL_ITEMS)
    return [
        (
            bench.measured(
                f"grounding, {count} items", GroundingReading, model,
                lambda model=model: read_grounding(
                    model, make_grounding(words, count=count), words.encode, device=bench.device
                ),
            ),
            where,
        )
        for _, model, where in taught
    ]  # fmt: skip


def test_facts_are_heard(groundings, judge):
    for reading, where in groundings:
        note = "largest change of a candidate through the facts, mean over questions"
        judge("heard", reading.heard, null_value=0, note=note, n=reading.found.reference.n, **where)


def test_what_is_said_comes_of_what_was_told(groundings, judge):
    for reading, where in groundings:
        found = reading.found
        for name, null in (("reference", reading.chance), ("novelty", None), ("consistency", 0.5)):
            part = getattr(found, name)
            judge(name, part.value, ci=part.ci, null_value=null, n=part.n, n_clusters=part.n_clusters, **where)
        note = f"grade {found.grade or 'none'}; each part at least .7: {'yes' if found.grounded else 'no'}"
        judge.info("mean", found.mean.value, ci=found.mean.ci, note=note, **where)
        judge.info("unstated_moved", reading.moved, unit="nats", null_value=0, **where)
