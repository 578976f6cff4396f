"""What a saved record says of itself, held against its own numbers and the limits in force."""

from collections.abc import Iterable

from harness.records import Record, Status
from harness.thresholds import Thresholds, judge_value
from harness.wording import label


def contradiction(record: Record, thresholds: Thresholds) -> str | None:
    """Why a record's status does not follow from its number; None when it does.

    Exact claims and records without a verdict carry no limits: they stand as they were made.
    """
    if record.info:
        return None
    what = f"{record.check} {label(record)}"
    limits = thresholds.of(record.check).get(record.metric)
    if limits is None:
        return f"{what}: carries limits that {thresholds.path.name} does not have" if record.threshold else None
    if record.value is None:
        judged = record.status in (Status.PASS, Status.WARN, Status.FAIL)
        return f"{what}: is judged {record.status} without a number" if judged else None
    if record.threshold is None:
        return f"{what}: has limits in {thresholds.path.name} and records none"
    in_force = limits.at(record.scale)
    if record.threshold != in_force:
        return f"{what}: was judged by other limits than {thresholds.path.name} has"
    if record.ci is not None and record.ci[0] > record.ci[1]:
        return f"{what}: its interval has its ends swapped"
    follows = judge_value(in_force, record.value, record.ci)
    return None if follows is record.status else f"{what}: recorded {record.status}, follows {follows}"


def key_of(record: Record) -> tuple[object, ...]:
    """What makes two records of one item the same quantity: measured what, where, of which weights."""
    place = (record.metric, record.case, record.layer, record.branch, record.info)
    # a claim without a metric is told from another by its words alone
    return (*place, record.seeds, record.step, record.checkpoint_sha256, "" if record.metric else record.note)


def repeated(records: Iterable[Record]) -> str | None:
    """The first quantity that an item recorded twice; None when each is there once."""
    seen: set[tuple[object, ...]] = set()
    for record in records:
        key = (record.nodeid, *key_of(record))
        if key in seen:
            return f"two records of {record.check} {label(record)} ({record.nodeid})"
        seen.add(key)
    return None
