"""GENOME: types of conversations by how the state moves over their turns, where there are any. Never judged by them."""

import pytest

pytestmark = pytest.mark.check("GENOME")

DIALOGUES = {("3.5M", "cpu"): 60}
"""By scale and device; what follows where nothing is said."""
ALL_DIALOGUES = 400


@pytest.fixture
def types(bench, taught, words, require_hooks, judge):
    """``(what the clustering found, where)`` of everything taught."""
    from fixtures.dialogues.courses import make_courses
    from harness.conversation_types import ConversationTypes, read_conversations
    from harness.state_shapes import grows

    count = DIALOGUES.get((bench.subject.scale, bench.device), ALL_DIALOGUES)
    found = []
    for seed, model, where in taught:
        require_hooks(model, "state")
        if grows(model, bench.validation_tokens(1, 4)):
            judge.na("the state grows with what was read (a key-value cache): its size says nothing of its course")
        reading = bench.measured(
            f"types of {count} conversations, seed {seed}", ConversationTypes, model,
            lambda model=model, seed=seed: read_conversations(
                model, make_courses(words, count=count), words.encode, device=bench.device, seed=seed
            ),
        )  # fmt: skip
        found.append((reading, where | {"n": count, "n_clusters": count}))
    return found


def test_the_state_moves_with_the_turns(types, judge, publish_figure):
    from harness.figures import LineFigure
    from harness.metrics.genome import STABLE

    for found, where in types:
        for branch, moved in found.moved.items():
            judge("turn_distance", moved, null_value=0, branch=branch, **where)
        judge.info("clusters", found.clusters, null_value=1, **where)
        if found.clusters > 1:
            judge.info(
                "stability", found.stability, null_value=found.null, note=f"reported from {STABLE:g} on", **where
            )
        if not found.reportable:
            continue
        judge.info("agreement", found.agreement, null_value=0, note="with the scripts", **where)
        panels = {
            feature: {
                f"type {label + 1}": [(turn, values[at]) for turn, values in zip(found.turns, course, strict=True)]
                for label, course in enumerate(found.courses)
            }
            for at, feature in enumerate(found.features)
        }
        title = f"Types of conversations, seed {where['seed']}"
        publish_figure(f"genome-seed-{where['seed']}", LineFigure(title, "turn", "standardised", panels))
