"""One branch on the statefulness page: what its state does, how long it remembers, what happens without it."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from harness.ranking import badness
from harness.records import Record, Status
from harness.state_evidence import Evidence, Grid, Row, by_seed, mean, number, say, span, status_of
from harness.witnesses import JUDGED_HORIZON, WRITE_SHARE, write_shares
from harness.wording import format_number

MOST_WEAK = 8
"""Weak records shown on a card; the rest are counted, and in decision.html."""

_REPLACEMENTS = {
    "zero": "zero, long",
    "mean": "mean, long",
    "another text's": "resample, long",
    "another text's, short states too": "resample, all",
}


@dataclass(frozen=True)
class Card:
    """One branch: a sentence, what it does, how long it remembers, what happens without it, where it is weak."""

    branch: str
    summary: str
    does: list[Row]
    remembers: list[Row]
    layers: Grid
    without: Grid
    weak: list[Record]
    weak_left_out: int


def branch_card(evidence: Evidence, branch: str, branches: Sequence[str]) -> Card:
    """What was measured of one branch's state."""
    weak = weak_first(record for record in evidence.records if record.branch == branch)
    return Card(
        branch=branch,
        summary=_summary(evidence, branch),
        does=_does(evidence, branch, branches),
        remembers=_remembers(evidence, branch),
        layers=_layers(evidence, branch),
        without=_without(evidence, branch),
        weak=weak[:MOST_WEAK],
        weak_left_out=max(0, len(weak) - MOST_WEAK),
    )


def _summary(evidence: Evidence, branch: str) -> str:
    """One sentence of what was measured; what was not is named in the rows below it."""
    heard = evidence.find("D3.activity", branch=branch)
    share, lives = evidence.find("INFO.share", branch=branch), evidence.find("EVOLUTION.half_life", branch=branch)
    cost = evidence.find("D3.loss_delta", case=f"{branch}, resample, long, {JUDGED_HORIZON} tokens")
    parts = []
    if heard:
        parts.append("is heard" if status_of(heard) == Status.PASS else f"is not surely heard ({status_of(heard)})")
    if share:
        parts.append(f"tells {100 * mean(by_seed(share)):.0f} % of what the state says of the next token")
    if cost:
        parts.append(f"costs {mean(by_seed(cost)):+.3g} nats a token when it is another text's")
    if lives:
        parts.append(f"keeps half of a difference for {span(lives)}")
    return f"Its state {', '.join(parts)}." if parts else "What its state is worth was not measured in this run."


def _does(evidence: Evidence, branch: str, branches: Sequence[str]) -> list[Row]:
    own = partial(_of_branch, evidence, branch)
    rows = [
        own("predictions moved by another text's state", "D3.activity"),
        own(
            "differs between texts (spread over size)",
            "D2.sensitivity",
            "S4.input_sensitivity",
            "G3.5.input_sensitivity",
        ),
        own("moves the loss, to first order", "COUPLING.strength"),
    ]
    if len(branches) > 1:
        written = write_shares(evidence, branch, branches)
        rows += [
            own("information on the next token", "INFO.flow"),
            own("share of that information", "INFO.share"),
            own("share of the first-order effect", "COUPLING.share"),
            evidence.row("share of what both write (type A), all layers", WRITE_SHARE, written),
        ]
    return rows


def _remembers(evidence: Evidence, branch: str) -> list[Row]:
    rows = []
    for what, source in (
        ("half-life of a difference, by layer", "EVOLUTION.half_life"),
        ("that half-life over the one its decays say", "EVOLUTION.half_life_ratio"),
    ):
        found = evidence.find(source, branch=branch)
        rows.append(Row(what, span(found), source, status_of(found)) if found else evidence.row(what, source, []))
    rows.append(_of_branch(evidence, branch, "timescale of its decays", "G3.5.timescale"))
    edits = evidence.find("EVOLUTION.edit_effect", branch=branch)
    by_lag = {case: [r for r in edits if r.case == case] for case in dict.fromkeys(r.case for r in edits)}
    words = "; ".join(f"{case}: {format_number(mean(by_seed(found)))}" for case, found in by_lag.items())
    what, source = "state moved by one edited token (relative)", "EVOLUTION.edit_effect"
    rows.append(Row(what, words, source) if edits else evidence.row(what, source, []))
    rows.append(_of_branch(evidence, branch, "growth of small differences", "EVOLUTION.lyapunov_exponent"))
    return rows


def _of_branch(evidence: Evidence, branch: str, what: str, *sources: str) -> Row:
    """The branch's number of the first of these metrics that has one."""
    for source in sources:
        if found := evidence.find(source, branch=branch):
            return evidence.row(what, source, found)
    return evidence.row(what, sources[0], [])


def _layers(evidence: Evidence, branch: str) -> Grid:
    """What is known of each layer; of several numbers of one layer the worst."""
    layers = sorted({r.layer for r in evidence.records if r.branch == branch and r.layer is not None})

    def pick(source: str) -> Callable[[int], list[Record]]:
        return lambda layer: by_seed(evidence.find(source, branch=branch, layer=layer))

    rows = (
        ("share of what both write (type A)", "BALANCE.write_share"),
        ("share of what both write (type A)", "G4.layer_activation_share"),
        ("write over residual, RMS", "BALANCE.write_over_residual"),
        ("loss moved, first order, nats", "COUPLING.layer_strength"),
        ("half-life, tokens", "EVOLUTION.half_life"),
        ("directions between texts", "D2.directions"),
        ("effective rank within a head", "D2.effective_rank"),
        ("size past the trained length", "D1.position_ratio"),
        ("growth beyond its decays (exponent)", "D1.exponent_excess"),
        ("size over what was written", "S1.write_ratio"),
    )
    shown = [row for row in rows if row[1] != "G4.layer_activation_share" or not evidence.find("BALANCE.write_share")]
    columns = {f"layer {layer}": layer for layer in layers}
    return evidence.grid(columns, [(name, source, pick(source)) for name, source in shown], number)


def _without(evidence: Evidence, branch: str) -> Grid:
    """Loss by what stands in for the branch's state, and by how many tokens follow."""
    pattern = re.compile(rf"{re.escape(branch)}, (?P<how>.+), (?P<horizon>\d+) tokens")
    cells: dict[tuple[str, int], list[Record]] = {}
    for record in evidence.find("D3.loss_delta"):
        if match := pattern.fullmatch(record.case):
            cells.setdefault((match["how"], int(match["horizon"])), []).append(record)
    horizons = {f"next {'token' if h == 1 else f'{h} tokens'}": h for h in sorted({h for _, h in cells})}

    def pick(how: str) -> Callable[[int], list[Record]]:
        return lambda horizon: cells.get((how, horizon), [])

    return evidence.grid(
        horizons, [(name, "D3.loss_delta", pick(how)) for name, how in _REPLACEMENTS.items()], partial(say, unit=False)
    )


def weak_first(records: Iterable[Record]) -> list[Record]:
    """Those that WARN or FAIL, worst first."""
    weak = [record for record in records if record.status in (Status.FAIL, Status.WARN) and not record.info]
    return sorted(weak, key=badness)
