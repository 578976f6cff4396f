"""D1 by position: how states grow along a text, beside what their own decays explain."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.batching import rows_at_once
from harness.data import Windows
from harness.evaluation import to_device
from harness.metrics.growth import (
    MIN_POINTS,
    SETTLED_TAUS,
    coherent_sizes,
    growth_exponent,
    head_energy,
    size_ratio,
    slowest_timescale,
    variation,
)
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio
from harness.metrics.spectrum import effective_rank
from harness.state_shapes import grows
from harness.trace import Trace, observing, state_after, trace
from models.protocol import StatePath
from models.stack import ContextError

LONGEST = 1000
"""A text is read at least this far, and at least four times as far as in training."""

TAIL_POINTS = 5
"""Positions from the trained length to the longest, both included: what the exponent is fitted on."""

NULL_QUANTILE = 0.95
"""The exponent that this share of documents stays below, had every write pointed the same way."""

RANKED_TEXTS = 4
"""Texts of each batch whose effective rank is followed by position, for the figure."""

BATCH = 8

# [batch, heads, rows, columns]
_MATRIX_DIMS = 4


@dataclass(frozen=True)
class Settled:
    """Variation of the size of those heads that have settled: of the median head and of the worst."""

    median: float
    worst: float
    heads: int


@dataclass(frozen=True)
class SiteGrowth:
    """One LONG tensor of one layer by position.

    sizes            RMS of the entries of each head over all texts, ``[position][head]``, in the state's own unit
    ratios           N(longest) / N(trained length) of each head
    exponents        slope of ln N against ln t beyond the trained length, mean over texts, of each head
    null_exponents   ``NULL_QUANTILE`` over texts of the same under writes that are all alike and the head's own decays
                     (at most 1); empty where the model reports no decays of this branch
    settled_cv       variation of N over the positions after five timescales of the slowest channel, of each head; None
                     where fewer than four positions are left, NaN where a size is not finite; empty without decays
    ranks            effective rank of the median head by position; empty for a state that is no matrix
    """

    layer: int
    branch: str
    kind: str
    sizes: list[list[float]]
    ratios: list[Interval]
    exponents: list[Interval]
    null_exponents: list[float]
    settled_cv: list[float | None]
    ranks: list[float]

    @property
    def worst_head(self) -> int:
        """The head that grows the most; one whose size is not finite comes first."""
        ratios = [ratio.value for ratio in self.ratios]
        return int(np.argmax(np.where(np.isfinite(ratios), ratios, np.inf)))

    @property
    def excesses(self) -> list[Interval]:
        """Exponent of each head minus that of its null; empty where there is no null."""
        return [
            Interval(e.value - null, e.low - null, e.high - null, e.n, e.n_clusters)
            for e, null in zip(self.exponents, self.null_exponents, strict=False)
        ]

    @property
    def worst_excess(self) -> int:
        """The head with the largest excess; one that has none, its size being zero or not finite, comes first."""
        excesses = [excess.value for excess in self.excesses]
        return int(np.argmax(np.where(np.isfinite(excesses), excesses, np.inf)))

    @property
    def settled_median(self) -> Settled | None:
        """None where fewer than half of the heads have settled, or no decays are reported.

        Of a single head nothing can be said: a healthy one may read .25 where the median of its layer reads .05.
        """
        found = [cv for cv in self.settled_cv if cv is not None]
        if not found or 2 * len(found) < len(self.settled_cv):
            return None
        broken = any(math.isnan(cv) for cv in found)
        return Settled(math.nan if broken else median(found), math.nan if broken else max(found), len(found))


@dataclass(frozen=True)
class PositionGrowth:
    """All states of a model by position; no sites where its states grow with the text or its positions run out.

    positions    tokens read, ascending; ``trained`` is the length of the training's windows, the last the longest
    losses       mean cross-entropy between two positions minus that of the stretch which ends at ``trained``, nats a
                 token, paired by text; the first begins at the first token
    not_measured why there is nothing to see, if so
    """

    positions: list[int]
    trained: int
    sites: list[SiteGrowth] = field(default_factory=list)
    losses: list[Interval] = field(default_factory=list)
    not_measured: str = ""


def longest_position(trained: int) -> int:
    """How far a text is read for a model trained on windows of ``trained`` tokens."""
    return max(LONGEST, 4 * trained)


def positions_of(trained: int) -> list[int]:
    """About a dozen positions, evenly spaced in log(t), with the trained length and the longest among them."""
    before = [trained / 2 ** (j / 2) for j in range(8, 0, -1)]
    after = np.geomspace(trained, longest_position(trained), TAIL_POINTS)
    return sorted({max(1, round(float(p))) for p in (*before, *after)})


def position_growth(model: nn.Module, windows: Windows, *, trained: int, device: str, seed: int) -> PositionGrowth:
    """Read the windows, of ``longest_position(trained)`` tokens, and follow every state that does not grow with them.

    ``seed`` is that of the intervals. The model must have the hook ``state``.
    """
    positions = positions_of(trained)
    assert windows.length == positions[-1], "the windows end at the last position"
    first, _, _ = next(windows.batches(1))
    start_BT = to_device(first[:, :2], torch.device(device))
    with observing(model):
        caches, state = grows(model, start_BT), state_after(model, start_BT)
    parts: list[dict[StatePath, _Observed]] = []
    losses: list[Tensor] = []
    if {(path.branch, path.kind) for path, _ in state.long_items()} <= caches:
        return PositionGrowth(positions, trained, not_measured="every state holds one entry a token: none accumulates")
    try:
        for inputs, targets, _ in windows.batches(rows_at_once(BATCH, windows.length, device)):
            targets_BT = to_device(targets, torch.device(device))
            with _losses_of(model, targets_BT, losses):
                read = trace(model, to_device(inputs, torch.device(device)), positions)
            parts.append(_observe(read, trained, caches))
    except ContextError as error:
        return PositionGrowth(positions, trained, not_measured=str(error))
    sites = [_site([part[path] for part in parts], path, positions, trained, windows, seed) for path in parts[0]]
    return PositionGrowth(
        positions, trained, sites, _loss_changes(torch.cat(losses), positions, trained, windows, seed)
    )


@contextmanager
def _losses_of(model: nn.Module, targets_BT: Tensor, losses: list[Tensor]) -> Iterator[None]:
    """Append the token losses ``[B, T]`` of the text that ``model`` reads inside, in however many pieces."""
    pieces: list[Tensor] = []

    def score(_: nn.Module, __: Any, outputs: tuple[Tensor, ...]) -> None:
        read = sum(piece.shape[1] for piece in pieces)
        logits_BTV = outputs[0].float()
        targets = targets_BT[:, read : read + logits_BTV.shape[1]]
        pieces.append(F.cross_entropy(logits_BTV.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets))

    handle = model.register_forward_hook(score)
    try:
        yield
    finally:
        handle.remove()
    losses.append(torch.cat(pieces, 1).double().cpu())


@dataclass(frozen=True)
class _Observed:
    """One LONG tensor on a batch of texts.

    energies   of each head by position ``[B, P, H]``
    coherent   sizes of the null from the trained length on ``[B, P', H]``; None where no decays are reported
    log_decay  mean over positions of each text ``[B, H, K]``, or ``[B, H]`` where a head has one decay
    ranks      effective ranks by position ``[P, texts, H]``; None for what is no matrix
    """

    energies: Tensor
    coherent: Tensor | None
    log_decay: Tensor | None
    ranks: Tensor | None


def _observe(read: Trace, trained: int, caches: frozenset[tuple[str, str]]) -> dict[StatePath, _Observed]:
    """Every state that does not grow with the text, by path; the decays of a branch count for all that it carries."""
    by_path = {path: [dict(state.items())[path] for state in read.states] for path, _ in read.states[0].long_items()}
    tail = [p for p in read.positions if p >= trained]
    observed = {}
    for path, states in by_path.items():
        if (path.branch, path.kind) in caches:
            continue
        energies = torch.stack([head_energy(state) for state in states], 1)
        reported = read.activations.layers[path.layer].decays if read.activations is not None else {}
        decays = reported.get(path.branch)
        if decays is not None and decays.shape[2] != energies.shape[2]:
            decays = None
        matrices = states[0].ndim >= _MATRIX_DIMS
        observed[path] = _Observed(
            energies.cpu(),
            None if decays is None else coherent_sizes(decays.cpu(), tail),
            None if decays is None else decays.cpu().double().log().mean(1),
            effective_rank(torch.stack([state[:RANKED_TEXTS] for state in states])).cpu() if matrices else None,
        )
    return observed


def _site(
    parts: Sequence[_Observed], path: StatePath, positions: Sequence[int], trained: int, windows: Windows, seed: int
) -> SiteGrowth:
    energy_nPH = torch.cat([part.energies for part in parts]).numpy()
    start = positions.index(trained)
    heads = range(energy_nPH.shape[2])
    slopes_nH = growth_exponent(positions[start:], np.sqrt(energy_nPH[:, start:]).swapaxes(1, 2))
    sizes_PH = np.sqrt(energy_nPH.mean(0))
    ones, documents = np.ones(len(windows)), windows.documents
    ranks = [part.ranks for part in parts if part.ranks is not None]
    return SiteGrowth(
        path.layer,
        path.branch,
        path.kind,
        sizes_PH.tolist(),
        [size_ratio(energy_nPH[:, -1, h], energy_nPH[:, start, h], documents, seed=seed) for h in heads],
        [bootstrap_ratio(ClusterRatio.of(slopes_nH[:, h], ones, documents), seed=seed) for h in heads],
        _null_exponents(parts, positions[start:]),
        _settled(parts, positions, sizes_PH),
        torch.cat(ranks, 1).flatten(1).median(1).values.tolist() if ranks else [],
    )


def _null_exponents(parts: Sequence[_Observed], tail: Sequence[int]) -> list[float]:
    sizes = [part.coherent for part in parts if part.coherent is not None]
    if not sizes:
        return []
    slopes_nH = growth_exponent(tail, torch.cat(sizes).transpose(1, 2).numpy())
    exponents: list[float] = np.quantile(slopes_nH, NULL_QUANTILE, axis=0).tolist()
    return exponents


def _settled(parts: Sequence[_Observed], positions: Sequence[int], sizes_PH: NDArray[np.float64]) -> list[float | None]:
    log_decays = [part.log_decay for part in parts if part.log_decay is not None]
    if not log_decays:
        return []
    settled: list[float | None] = []
    for h, first in enumerate((SETTLED_TAUS * slowest_timescale(torch.cat(log_decays).mean(0))).tolist()):
        late = [size for size, p in zip(sizes_PH[:, h], positions, strict=True) if p >= first]
        settled.append(variation(late) if len(late) >= MIN_POINTS else None)
    return settled


def _loss_changes(
    losses_nT: Tensor, positions: Sequence[int], trained: int, windows: Windows, seed: int
) -> list[Interval]:
    """See ``PositionGrowth.losses``."""
    bounds = list(zip((0, *positions), positions, strict=False))
    means_nP = np.stack([losses_nT[:, begin:end].mean(1).numpy() for begin, end in bounds], 1)
    ones = np.ones(len(windows))
    change_nP = means_nP - means_nP[:, [positions.index(trained)]]
    return [
        bootstrap_ratio(ClusterRatio.of(change_nP[:, i], ones, windows.documents), seed=seed)
        for i in range(len(positions))
    ]
