"""Which branch carries what: independent analyses asked the same question, and whether they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.records import Record
from harness.state_evidence import Evidence, by_seed, mean, say
from harness.wording import format_number

WRITE_SHARE = "BALANCE.smaller_write_share"
JUDGED_HORIZON = 16
"""Tokens after a swap of states over which D3 judges."""


@dataclass(frozen=True)
class Witness:
    """One analysis that gives every branch a size.

    question  what it asks; heard: whether it measures what the output takes from the state. Otherwise it measures what
              is written, whoever reads it
    sizes     in words, by branch; shares: of the sum of all branches, where none is negative
    leader    the branch whose interval lies above all others', in every seed; None where intervals overlap, where there
              is none, or where seeds differ. undecided: why there is no leader
    missing   why the analysis has no numbers
    """

    name: str
    source: str
    question: str
    heard: bool
    sizes: Mapping[str, str]
    shares: Mapping[str, float]
    leader: str | None
    undecided: str = ""
    missing: str = ""


_QUESTIONS = (
    ("Swapped state, predictions", "D3.activity", "How much do the next 16 tokens' predictions change (KL) when this "
     "branch's state is another document's?"),
    ("Swapped state, loss", "D3.loss_delta", "How much worse does the model predict the next 16 tokens then?"),
    ("Information", "INFO.share", "Which part of what the state tells of the next token comes from this branch?"),
    ("Gradient", "COUPLING.share", "Which part of the loss's first-order dependence on the state is this branch's?"),
)  # fmt: skip


def witnesses(evidence: Evidence, branches: Sequence[str]) -> list[Witness]:
    """Every analysis, those without numbers too: first what is heard of the state, last what is written."""
    found = [_heard(evidence, branches, *question) for question in _QUESTIONS]
    return [*found, _written(evidence, branches)]


def _heard(evidence: Evidence, branches: Sequence[str], name: str, source: str, question: str) -> Witness:
    by_branch = {}
    for branch in branches:
        case = f"{branch}, resample, long, {JUDGED_HORIZON} tokens" if source == "D3.loss_delta" else None
        by_branch[branch] = evidence.find(source, branch=None if case else branch, case=case)
    return _witness(evidence, name, source, question, by_branch, heard=True)


def _written(evidence: Evidence, branches: Sequence[str]) -> Witness:
    question = "Which part of the variance of what both add to the residual stream is this branch's?"
    by_branch = {branch: write_shares(evidence, branch, branches) for branch in branches}
    return _witness(evidence, "Writes (type A)", WRITE_SHARE, question, by_branch, heard=False)


def write_shares(evidence: Evidence, branch: str, branches: Sequence[str]) -> list[Record]:
    """A branch's share in what two branches write, one record a seed; none where there are not two."""
    if len(branches) != 2:
        return []
    return [record if branch == record.branch else _rest(record, branch) for record in evidence.find(WRITE_SHARE)]


def _rest(record: Record, branch: str) -> Record:
    """The other branch's share: BALANCE judges the smaller of two, and this is what is left of 1. It has no status."""
    assert record.value is not None
    ci = None if record.ci is None else (1 - record.ci[1], 1 - record.ci[0])
    return record.model_copy(update={"branch": branch, "value": 1 - record.value, "ci": ci, "info": True})


def _witness(
    evidence: Evidence, name: str, source: str, question: str, by_branch: Mapping[str, Sequence[Record]], *, heard: bool
) -> Witness:
    if not all(by_branch.values()) or not by_branch:
        return Witness(name, source, question, heard, {}, {}, None, missing=evidence.why_not(source))
    seeds = {branch: by_seed(records) for branch, records in by_branch.items()}
    means = {branch: mean(records) for branch, records in seeds.items()}
    total = sum(means.values())
    positive = total > 0 and min(means.values()) >= 0
    leaders = {_leader(dict(zip(seeds, row, strict=True))) for row in zip(*seeds.values(), strict=False)}
    leader = leaders.pop() if len(leaders) == 1 else None
    undecided = "" if leader else "seeds differ" if leaders else "intervals overlap"
    return Witness(
        name=name,
        source=source,
        question=question,
        heard=heard,
        sizes={branch: say(records) for branch, records in seeds.items()},
        shares={branch: value / total for branch, value in means.items()} if positive else {},
        leader=leader,
        undecided=undecided if len(by_branch) > 1 else "",
    )


def _leader(by_branch: Mapping[str, Record]) -> str | None:
    """The branch whose interval lies above every other's; None where there is none."""
    for branch, record in by_branch.items():
        others = [other for name, other in by_branch.items() if name != branch]
        if others and record.ci and all(other.ci and record.ci[0] > other.ci[1] for other in others):
            return branch
    return None


def headline(evidence: Evidence, found: Sequence[Witness], branches: Sequence[str]) -> list[str]:
    """Which branch carries what, and whether the analyses agree, in sentences made of their numbers."""
    if not branches:
        return ["No record names a branch with a state, so nothing can be said of what one carries."]
    heard = [witness for witness in found if witness.heard]
    absent = [witness for witness in heard if witness.missing.startswith("missing")]
    if len(branches) == 1:
        return [_alone(branches[0], heard), *_missing_sentence(absent)]
    sentences = [_agreement(heard, branches), *_missing_sentence(absent)]
    return [*sentences, *_short_states(evidence, branches), *_writing(found, heard)]


def disagreement(records: Sequence[Record]) -> str | None:
    """What D3, INFO and COUPLING say when they name different branches as the one that carries more; else None."""
    evidence = Evidence(records)
    branches = list(dict.fromkeys(record.branch for record in evidence.find("D3.activity") if record.branch))
    heard = [witness for witness in witnesses(evidence, branches) if witness.heard]
    leaders = {witness.leader for witness in heard if witness.leader}
    return _agreement(heard, branches) if len(leaders) > 1 else None


def _alone(branch: str, heard: Sequence[Witness]) -> str:
    sizes = [
        f"{phrase} by {witness.sizes[branch]}"
        for witness, phrase in zip(heard, ("moves the predictions of the next 16 tokens", "costs them"), strict=False)
        if branch in witness.sizes
    ]
    if not sizes:
        return f"One branch has a state, {branch}; what that state is worth was not measured."
    return f"One branch has a state, {branch}, and carries all of it: another document's state {' and '.join(sizes)}."


def _agreement(heard: Sequence[Witness], branches: Sequence[str]) -> str:
    leaders = {witness.name: witness.leader for witness in heard if witness.leader}
    undecided = [f"{witness.name.lower()} ({witness.undecided})" for witness in heard if witness.undecided]
    silent = f" No leader: {', '.join(undecided)}." if undecided else ""
    if not leaders:
        return f"No analysis can tell {' from '.join(branches)} by what is heard of their states.{silent}"
    names = sorted(set(leaders.values()))
    if len(names) > 1:
        sides = "; ".join(
            f"{', '.join(n.lower() for n, led in leaders.items() if led == name)}: {name}" for name in names
        )
        return f"The analyses disagree on which branch's state carries more: {sides}.{silent}"
    first = next(witness for witness in heard if witness.leader)
    sizes = ", ".join(f"{branch} {size}" for branch, size in first.sizes.items())
    # the two questions of D3 are of one and the same exchange of states
    methods = list(dict.fromkeys(witness.source.partition(".")[0] for witness in heard if witness.leader))
    count = (
        f"{' and '.join([', '.join(methods[:-1]), methods[-1]])} agree" if len(methods) > 1 else f"{methods[0]} says"
    )
    shares = [witness.shares[names[0]] for witness in heard if witness.leader and witness.shares]
    reach = f", with {_percent(min(shares))} to {_percent(max(shares))} of the whole" if len(shares) > 1 else ""
    said = f"{count}: the state of {names[0]} carries more of what is said next{reach}"
    return f"{said} ({first.name.lower()}: {sizes}).{silent}"


def _short_states(evidence: Evidence, branches: Sequence[str]) -> list[str]:
    """Branches that cost clearly more when their short states are swapped as well: the rest speaks of LONG ones."""
    said = []
    for branch in branches:
        long, every = (
            by_seed(evidence.find("D3.loss_delta", case=f"{branch}, resample, {kinds}, {JUDGED_HORIZON} tokens"))
            for kinds in ("long", "all")
        )
        pairs = list(zip(long, every, strict=False))
        if pairs and all(a.ci and b.ci and b.ci[0] > a.ci[1] for a, b in pairs):
            said.append(
                f"All of this is of LONG states. Swapped with its short ones (the last few tokens) that of {branch} "
                f"costs {say(every)} instead of {say(long)}: the difference is what it carries of those"
            )
    return [f"{sentence}." for sentence in said]


def _writing(found: Sequence[Witness], heard: Sequence[Witness]) -> list[str]:
    written = next(witness for witness in found if not witness.heard)
    if written.missing:
        return [f"What the branches write was not compared: {written.missing}."]
    if not written.leader:
        return []
    share = format_number(written.shares[written.leader])
    said = f"{written.leader} writes more: {share} of the variance that both add to the residual stream"
    if {witness.leader for witness in heard if witness.leader} - {written.leader}:
        said += (
            ". That is no contradiction: a write also holds what follows from the current token alone, and its size "
            "says nothing of whether it is read"
        )
    return [f"{said}."]


def _missing_sentence(absent: Sequence[Witness]) -> list[str]:
    return (
        [f"Not asked: {'; '.join(f'{witness.name.lower()} ({witness.missing})' for witness in absent)}."]
        if absent
        else []
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
