"""Numbers of a check by what is resampled, kept beside a report so that two reports can be compared in pairs.

``items.jsonl`` holds one JSON object a line, one line a metric and seed. The report keeps its hash.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import HarnessError
from harness.records import JsonBand
from harness.thresholds import explain_validation

ITEMS_FILE = "items.jsonl"


class ItemSet(BaseModel):
    """One metric of one trained model, as a ratio of sums kept by item.

    items       sum and count by the id of the document, dialogue or question; the metric is all sums over all counts.
                A model that broke may have sums that are not finite
    direction   what is better, if anything is
    corpus_sha256, tokenizer_sha256  what the ids belong to: the same id of another corpus is another document
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    metric: str
    seed: int
    unit: str
    direction: Literal["higher", "lower", ""]
    corpus_sha256: str
    tokenizer_sha256: str
    items: dict[str, JsonBand] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_counts(self) -> Self:
        for item, (total, count) in self.items.items():
            if not 0 <= count < math.inf:
                raise ValueError(f"item {item} holds ({total}, {count}); give (sum, count), a count of at least 0")
        if not any(count for _, count in self.items.values()):
            raise ValueError("no item has a count")
        return self

    @property
    def is_finite(self) -> bool:
        """Whether every sum is a number."""
        return all(math.isfinite(total) for total, _ in self.items.values())

    @property
    def key(self) -> tuple[str, str]:
        """The quantity, whatever the seed."""
        return self.check, self.metric


def items_text(sets: Iterable[ItemSet]) -> str:
    """``items.jsonl``: the same text for the same sets, whatever order they came in."""
    return "".join(f"{line}\n" for line in sorted(each.model_dump_json() for each in sets))


def items_sha256(text: str) -> str:
    """The hash of ``items.jsonl`` that its report keeps."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_items(directory: Path, sha256: str) -> list[ItemSet]:
    """The items beside a report whose recorded hash is ``sha256``. Raises HarnessError for any others."""
    path = directory / ITEMS_FILE
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{path}: {error}; a report keeps its items beside it, copy the whole directory") from error
    if items_sha256(text) != sha256:
        raise HarnessError(
            f"{path} is not the file whose hash the report recorded; take the directory as --report wrote it"
        )
    try:
        found = [ItemSet.model_validate_json(line) for line in text.splitlines()]
    except ValidationError as error:
        raise HarnessError(f"{path} holds no items:\n{explain_validation(error)}") from error
    require_each_once(found)
    return found


def require_each_once(sets: Sequence[ItemSet]) -> None:
    """Raise HarnessError when two sets claim to be the same metric of the same seed."""
    seen: set[tuple[str, str, int]] = set()
    for each in sets:
        key = (*each.key, each.seed)
        if key in seen:
            raise HarnessError(f"two sets of items for {each.check}.{each.metric}, seed {each.seed}; publish one")
        seen.add(key)


def by_seed(sets: Iterable[ItemSet]) -> Mapping[tuple[str, str], dict[int, ItemSet]]:
    """Sets by quantity and seed."""
    grouped: dict[tuple[str, str], dict[int, ItemSet]] = {}
    for each in sets:
        grouped.setdefault(each.key, {})[each.seed] = each
    return grouped
