"""Items of several probes, for EleutherAI's lm-evaluation-harness: it scores documents, and a document is one probe.

An export copies this file beside its tasks, where that program imports it: it must import nothing of this project.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Probed = tuple[int, int, int, bool]
"""Of one probe: the index of its item, how many probes the item has, how many must be right, whether this one is."""


def results(document: Mapping[str, Any], answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """What one probe adds to the metrics: ``acc`` counts probes, ``item_acc`` counts items.

    document  a line of the exported file
    answers   log p of each choice, and whether it is the likeliest token of all
    """
    choice = int(np.argmax([log_p for log_p, _ in answers]))
    right = choice in document["gold"]
    return {"acc": float(right), "item_acc": (document["item"], document["probes"], document["need"], right)}


def item_accuracy(probed: Sequence[Probed]) -> float:
    """Share of the items of which enough probes are right; NaN when none is complete.

    Only complete items count: a limit on the documents may cut the last one in two.
    """
    right_by_item: dict[int, list[bool]] = {}
    rule_by_item: dict[int, tuple[int, int]] = {}
    for item, probes, need, right in probed:
        right_by_item.setdefault(item, []).append(right)
        rule_by_item[item] = (probes, need)
    passed = [
        sum(rights) >= rule_by_item[item][1]
        for item, rights in right_by_item.items()
        if len(rights) == rule_by_item[item][0]
    ]
    return sum(passed) / len(passed) if passed else math.nan
