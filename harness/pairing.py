"""Two reports held against each other item by item, where both measured the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.comparison import FALSE_DISCOVERIES, Tendency
from harness.items import ItemSet, by_seed
from harness.metrics.change import believed
from harness.metrics.paired import PairedDifference, paired_difference

CLAIM = 2 * FALSE_DISCOVERIES
"""Share of two-sided claims that may be chance: half of them, those of one side, are for the worse."""

MOST_NAMED = 3


@dataclass(frozen=True)
class PairedChange:
    """One metric of both reports. changed: beyond its noise, and still so among all that were compared."""

    check: str
    metric: str
    unit: str
    direction: str
    seeds: tuple[int, ...]
    difference: PairedDifference
    changed: bool
    tendency: Tendency

    @property
    def what(self) -> str:
        """The quantity: ``G3.val_loss``."""
        return f"{self.check}.{self.metric}"

    @property
    def score(self) -> str:
        """On how many items the second is better, worse and level: ``30 : 11 : 2``; empty where nothing is better."""
        counts = self.difference.higher, self.difference.lower
        wins, losses = counts if self.direction == "higher" else counts[::-1]
        return f"{wins} : {losses} : {self.difference.equal}" if self.direction else ""


@dataclass(frozen=True)
class Pairing:
    """Everything of both reports that has items. refused: why a metric could not be paired, or not all of it."""

    changes: Sequence[PairedChange]
    refused: Sequence[str]


def pair(first: Sequence[ItemSet], second: Sequence[ItemSet]) -> Pairing:
    """Second less first: seed by seed where both have the seed, item by item where both have the same items."""
    sides = by_seed(first), by_seed(second)
    found: list[_Pair] = []
    refused = []
    for key in sorted({*sides[0], *sides[1]}):
        mine, theirs = (side.get(key, {}) for side in sides)
        both = sorted({*mine} & {*theirs})
        alone = sorted({*mine} ^ {*theirs})
        fault = _fault(mine, theirs, both)
        if not fault:
            found.append(_Pair([mine[seed] for seed in both], [theirs[seed] for seed in both]))
            fault = f"seed {', '.join(map(str, alone))} is in one report only and left out" if alone else ""
        if fault:
            refused.append(f"{'.'.join(key)}: {fault}")
    differences = [each.difference for each in found]
    stand = believed([difference.p_value for difference in differences], CLAIM)
    changes = [each.change(by, claim) for each, by, claim in zip(found, differences, stand, strict=True)]
    return Pairing(changes, refused)


def _fault(mine: Mapping[int, ItemSet], theirs: Mapping[int, ItemSet], both: Sequence[int]) -> str:
    """Why a metric cannot be paired; empty when it can."""
    if not mine or not theirs:
        return f"only the {'second' if theirs else 'first'} report has its items"
    if not both:
        return f"no seed in common ({', '.join(map(str, mine))} against {', '.join(map(str, theirs))})"
    sets = [side[seed] for seed in both for side in (mine, theirs)]
    for name, words in (("corpus_sha256", "texts"), ("tokenizer_sha256", "tokenizers")):
        if len({getattr(each, name) for each in sets}) > 1:
            return f"measured on other {words}, where equal names of items mean nothing"
    for name in ("unit", "direction"):
        values = sorted({getattr(each, name) for each in sets})
        if len(values) > 1:
            return f"its {name} differs ({' against '.join(map(repr, values))})"
    reference = sets[0].items
    for each in sets[1:]:
        if each.items.keys() != reference.keys():
            odd = sorted(each.items.keys() ^ reference.keys())
            named = ", ".join(odd[:MOST_NAMED]) + (", ..." if len(odd) > MOST_NAMED else "")
            return f"measured on other items ({len(odd)} are not in both: {named})"
        if any(each.items[item][1] != count for item, (_, count) in reference.items()):
            return "the same items count differently: other parts of them were measured"
    return ""


@dataclass(frozen=True)
class _Pair:
    """The same seeds and items of both reports."""

    mine: Sequence[ItemSet]
    theirs: Sequence[ItemSet]

    @property
    def difference(self) -> PairedDifference:
        names = sorted(self.mine[0].items)
        first, second = (
            [[each.items[name][0] for name in names] for each in side] for side in (self.mine, self.theirs)
        )
        counts = [self.mine[0].items[name][1] for name in names]
        return paired_difference(first, second, counts, seed=self.mine[0].seed)

    def change(self, difference: PairedDifference, claim: bool) -> PairedChange:
        about = self.mine[0]
        broken = [not all(each.is_finite for each in side) for side in (self.mine, self.theirs)]
        tendency: Tendency = ""
        if broken[0] != broken[1]:
            # no test is needed to tell a number from none
            claim, tendency = True, "worse" if broken[1] else "better"
        elif claim and about.direction:
            tendency = "better" if (difference.value > 0) == (about.direction == "higher") else "worse"
        seeds = tuple(each.seed for each in self.mine)
        return PairedChange(about.check, about.metric, about.unit, about.direction, seeds, difference, claim, tendency)
