"""Information flow from a model's state to its next token, branch by branch, by exchanging states between documents.

A target is one token of one text. It and the SHORT states stay; the LONG states come from other documents at the same
position: K donors for each of two branches, K^2 distributions of the next token. All layers are exchanged together.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from harness.ablation import long_branches, states_at
from harness.batching import rows_at_once
from harness.data import DataError, Windows
from harness.evaluation import to_device
from harness.interaction import BATCH, HORIZON, boundaries_of
from harness.metrics.information import Bracket, channel_information, flow
from harness.metrics.interaction import divergences
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio
from harness.trace import observing
from models.protocol import SHORT_KINDS, State

DONORS = (16, 32)
"""Donors of each branch; the larger number where the bracket of the smaller one is too wide."""

MAX_BRACKET = 0.2
"""Width of the bracket over its lower end at which more donors are needed."""

NOTHING = 1e-6
"""Nats of a total that is rounding; there is nothing to have a share in."""


@dataclass(frozen=True)
class InformationFlow:
    """What the LONG state tells the next token, in nats a token, averaged over the targets.

    total      of all branches, plug-in (lower bound); upper: its leave-one-out bound
    null       largest total when every donor is the target itself: 0 but for rounding
    flow       part of each branch (Shapley value); they add up to the total; shares: over the total
    alone, given  what a branch tells by itself, and beside the other one; synergy: the mean of given - alone
    joint      total when both branches come from one donor; joint_all: SHORT states from it as well
    divergence mean KL of the true next-token distribution against that of ``joint``
    by_position   flow by branch at each boundary
    by_position has the total under ``all`` where there are not two branches.
    Two branches are needed for flow, shares, alone, given and synergy; shares need a total above ``NOTHING``.
    """

    branches: tuple[str, ...]
    total: Interval
    upper: float
    null: float
    flow: dict[str, Interval]
    shares: dict[str, Interval] | None
    alone: dict[str, float]
    given: dict[str, float]
    synergy: Interval | None
    joint: Interval
    joint_all: Interval
    divergence: Interval
    by_position: dict[int, dict[str, float]]
    donors: int
    targets: int
    documents: int
    model_tokens: int

    @property
    def bracket(self) -> float:
        """(upper - lower) / lower; 0 where both are rounding."""
        return (self.upper - self.total.value) / self.total.value if self.upper > NOTHING else 0.0

    @property
    def invalid(self) -> str:
        """Why the numbers mean nothing; empty when they do mean something."""
        if self.bracket < MAX_BRACKET:
            return ""
        return (
            f"{self.donors} donors leave the total between {self.total.value:.3g} and {self.upper:.3g} nat: a bracket "
            f"of {self.bracket:.2f}, and {MAX_BRACKET} is the most allowed"
        )


def measure_flow(
    model: nn.Module, windows: Windows, *, device: str, seed: int, targets: int, donors: Sequence[int] = DONORS
) -> InformationFlow:
    """Measure with the first number of donors whose bracket is narrow enough, else with the last.

    About ``targets`` tokens are used, at most one a window and boundary, spread over both. The model must have the
    hook ``state`` and at least one LONG state. ``seed`` draws the donors and the resamples. Raises ``DataError`` when
    the windows of other documents are fewer than the donors.
    """
    inputs, _, _ = next(windows.batches(len(windows)))
    inputs_nT = to_device(inputs, torch.device(device))
    boundaries = boundaries_of(windows.length, min(HORIZON, max(windows.length // 4, 1)))
    rows = rows_at_once(BATCH, windows.length, device)
    states = dict(zip(boundaries, states_at(model, inputs_nT, boundaries, rows), strict=True))
    plan = list(_spread(boundaries, len(windows), targets))
    spent = len(windows) * boundaries[-1]
    for count in donors:
        reader = _Reader(model, inputs_nT, windows.documents, states, count)
        generator = np.random.default_rng(seed)
        found = [reader.real(t, row, generator) for t, row in plan]
        null = max(reader.null(t, row) for t, row in plan[:: max(len(plan) // len(boundaries), 1)])
        spent += reader.passes * len(plan)
        result = _summary(reader, plan, found, null, spent, seed)
        if not result.invalid:
            break
    return result


def donor_rows(documents: ArrayLike, row: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` different rows of other documents than ``row``'s, from as many documents as there are.

    Raises ``DataError`` when there are not so many.
    """
    labels = np.asarray(documents)
    others = generator.permutation(np.flatnonzero(labels != labels[row]))
    if len(others) < count:
        raise DataError(
            f"window {row} has {len(others)} windows of other documents to take states from and {count} are needed; "
            "give more or longer documents"
        )
    # a document's second window comes after the first window of every other
    seen: dict[int, int] = defaultdict(int)
    rounds = []
    for other in others:
        rounds.append(seen[labels[other]])
        seen[labels[other]] += 1
    return others[np.argsort(rounds, kind="stable")[:count]].astype(np.int64)


@dataclass(frozen=True)
class Exchange:
    """From which rows each branch takes its LONG state, or all of its state; all name as many rows."""

    rows: Mapping[str, Sequence[int]]
    short: bool = False

    def __len__(self) -> int:
        (count,) = {len(chosen) for chosen in self.rows.values()}
        return count

    def of(self, row: int, branch: str, *, short: bool) -> Sequence[int]:
        """Rows for the LONG or SHORT states of a branch; what is not exchanged is that of ``row``."""
        moves = branch in self.rows and (self.short or not short)
        return self.rows[branch] if moves else [row] * len(self)


def exchange(state: State, row: int, *exchanges: Exchange) -> State:
    """A batch of states for one target: those of the first exchange, then those of the next."""

    @cache
    def index(branch: str, short: bool) -> Tensor:
        chosen = [taken for each in exchanges for taken in each.of(row, branch, short=short)]
        return torch.as_tensor(chosen, device=device)

    device = next(tensor.device for _, tensor in state.items())
    return state.map(lambda path, tensor: tensor[index(path.branch, path.kind in SHORT_KINDS)])


def grid(branches: Sequence[str], first: Sequence[int], second: Sequence[int]) -> Exchange:
    """Every donor of the first branch beside every donor of the second, the second running fastest."""
    return Exchange(
        {
            branches[0]: np.repeat(np.asarray(first), len(second)).tolist(),
            branches[1]: np.tile(np.asarray(second), len(first)).tolist(),
        }
    )


def next_token(model: nn.Module, tokens_B: Tensor, state: State) -> Tensor:
    """Log-probabilities ``[B, V]`` of the token after ``tokens_B``, one step from ``state``."""
    with observing(model):
        logits_BV = model(tokens_B[:, None], state, return_states=True)[0][:, 0]
    # summed in fp64 later; a log-softmax of half precision would lose what is looked for
    logits_BV = logits_BV.float() if logits_BV.dtype in (torch.float16, torch.bfloat16) else logits_BV
    return torch.log_softmax(logits_BV, -1)


def _spread(boundaries: Sequence[int], windows: int, targets: int) -> Iterator[tuple[int, int]]:
    """``(boundary, row)`` of about ``targets`` targets: boundaries take turns, rows go round evenly."""
    each = min(windows, -(-targets // len(boundaries)))
    for index, boundary in enumerate(boundaries):
        rows = (np.linspace(0, windows, each, endpoint=False) + index * windows / (each * len(boundaries))).astype(int)
        for row in rows:
            yield boundary, int(row)


@dataclass(frozen=True)
class _Reading:
    """What one target gave, in nats; the tuples are by branch and empty unless there are two."""

    total: Bracket
    joint: float
    joint_all: float
    divergence: float
    flow: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()
    given: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Reader:
    """Reads targets, tokens ``[n, T]``, with a number of donors."""

    model: nn.Module
    tokens: Tensor
    documents: NDArray[np.int64]
    states: Mapping[int, State]
    donors: int

    @property
    def branches(self) -> tuple[str, ...]:
        return long_branches(next(iter(self.states.values())))

    @property
    def passes(self) -> int:
        """States from which each target is read."""
        return 1 + 2 * self.donors + (self.donors**2 if len(self.branches) == 2 else 0)

    def real(self, t: int, row: int, generator: np.random.Generator) -> _Reading:
        """One target with donors from other documents, drawn for each branch on its own."""
        first, second = (donor_rows(self.documents, row, self.donors, generator).tolist() for _ in range(2))
        return self._read(t, row, first, second)

    def null(self, t: int, row: int) -> float:
        """The total when every donor is the target itself."""
        same = [row] * self.donors
        return abs(self._read(t, row, same, same).total.lower)

    def _read(self, t: int, row: int, first: Sequence[int], second: Sequence[int]) -> _Reading:
        two = len(self.branches) == 2
        exchanges = [
            Exchange(dict.fromkeys(self.branches, first)),
            Exchange(dict.fromkeys(self.states[t].branches, first), short=True),
            Exchange({branch: [row] for branch in self.branches}),
            *([grid(self.branches, first, second)] if two else []),
        ]
        # in one pass: of a few rows it takes a GPU as long as of many
        state = exchange(self.states[t], row, *exchanges)
        counts = [len(each) for each in exchanges]
        logp_nV = next_token(self.model, self.tokens[row, t].expand(sum(counts)), state)
        joint_KV, every_KV, clean_1V, *gridded = torch.split(logp_nV, counts)
        joint = channel_information(joint_KV)
        reading = _Reading(
            total=joint,
            joint=joint.lower,
            joint_all=channel_information(every_KV).lower,
            divergence=float(divergences(clean_1V.double().expand_as(joint_KV), joint_KV.double()).mean()),
        )
        if not two:
            return reading
        found = flow(gridded[0].view(len(first), len(second), -1))
        return replace(reading, total=found.total, flow=found.parts, alone=found.alone, given=found.given)


def _summary(
    reader: _Reader, plan: Sequence[tuple[int, int]], found: Sequence[_Reading], null: float, spent: int, seed: int
) -> InformationFlow:
    """Means over the targets, with intervals over the documents that they lie in."""
    documents = reader.documents[[row for _, row in plan]]

    def ratio(values: Sequence[float], over: Sequence[float] | None = None) -> Interval:
        return bootstrap_ratio(ClusterRatio.of(values, over or [1.0] * len(values), documents), seed=seed)

    names = reader.branches if found[0].flow else ()
    flows = {name: [reading.flow[i] for reading in found] for i, name in enumerate(names)}
    totals = [reading.total.lower for reading in found]
    total = ratio(totals)
    positions = {t: [at == t for at, _ in plan] for t in reader.states}
    return InformationFlow(
        branches=reader.branches,
        total=total,
        upper=float(np.mean([reading.total.upper for reading in found])),
        null=null,
        flow={name: ratio(values) for name, values in flows.items()},
        shares={name: ratio(v, totals) for name, v in flows.items()} if names and total.value > NOTHING else None,
        alone={name: float(np.mean([reading.alone[i] for reading in found])) for i, name in enumerate(names)},
        given={name: float(np.mean([reading.given[i] for reading in found])) for i, name in enumerate(names)},
        synergy=ratio([reading.given[0] - reading.alone[0] for reading in found]) if names else None,
        joint=ratio([reading.joint for reading in found]),
        joint_all=ratio([reading.joint_all for reading in found]),
        divergence=ratio([reading.divergence for reading in found]),
        by_position={
            t: {name: float(np.mean(values, where=here)) for name, values in (flows or {"all": totals}).items()}
            for t, here in positions.items()
        },
        donors=reader.donors,
        targets=len(plan),
        documents=len(np.unique(documents)),
        model_tokens=spent,
    )
