"""Gradient-state coupling of a model: how strongly the loss of the next tokens hangs on each branch's LONG state.

    K_c = sqrt(E[(g_c . (S_c - S'_c))^2] / 2),    g = d(sum of the next tokens' cross entropies) / dS

with S' the state of another document at the same position and the product taken over all layers and heads. This is
first order; whether the first order tells the truth is measured beside it, by exchanging states and reading the loss.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from harness.ablation import donors, long_branches, states_at, swap
from harness.batching import rows_at_once
from harness.data import Windows
from harness.evaluation import to_device
from harness.interaction import BATCH, HORIZON, boundaries_of
from harness.metrics.coupling import compare, distortion, mean_square, rank_agreement, strength
from harness.metrics.intervals import ClusterRatio, Interval
from harness.trace import observing
from models.protocol import SHORT_KINDS, State, StatePath

HEADS = 32
"""Heads whose states are exchanged one by one, spread evenly over all of them."""

HEAD_WINDOWS = 24
"""Windows in which that is done, at the middle boundary."""

MIN_AGREEMENT = 0.7
"""Rank correlation of first-order and true effects below which the first order says nothing of the model."""

MAX_DISTORTION = 2.0
"""Factor between the first-order and the true ratio of the branches beyond which a ratio is carried past a limit."""

Site = tuple[int, str]
"""The LONG state of one branch in one layer."""


@dataclass(frozen=True)
class Coupling:
    """What the branches' states do to the loss of the next ``horizon`` tokens together, in nats.

    strength   K by branch; layers: the same for one layer alone, by branch and layer
    ratio      larger over smaller K, shares: K_c over their sum; None unless there are two branches
    true       sqrt(E[Delta^2] / 2) by branch, Delta the change of the loss when the branch's state is exchanged
    agreement  rank correlation of |g . (S - S')| and |Delta| over ``pairs`` of a window and a single head
    distortion factor between the ratio of ``strength`` and that of ``true``; None unless there are two branches
    """

    branches: tuple[str, ...]
    strength: dict[str, Interval]
    layers: dict[str, dict[int, float]]
    ratio: Interval | None
    shares: dict[str, Interval] | None
    true: dict[str, float]
    agreement: float
    pairs: int
    distortion: float | None
    horizon: int
    boundaries: tuple[int, ...]
    windows: int
    documents: int
    model_tokens: int

    @property
    def invalid(self) -> str:
        """Why the shares mean nothing; empty when they do mean something.

        A branch without any effect, by gradient and by exchange, is dead and not a failure of the measurement.
        """
        if not all(self.strength[b].value > 0 and self.true[b] > 0 for b in self.branches):
            return ""
        if not self.agreement >= MIN_AGREEMENT:
            return (
                f"first-order effects of single heads rank as the true ones do by {self.agreement:.2f} only; "
                f"{MIN_AGREEMENT} is needed"
            )
        if self.distortion is not None and not self.distortion <= MAX_DISTORTION:
            return f"the first-order ratio of the branches is off the true one by a factor of {self.distortion:.2f}"
        return ""


def measure_coupling(model: nn.Module, windows: Windows, *, device: str, seed: int) -> Coupling:
    """Couple every branch; the model must have the hook ``state`` and at least one LONG state.

    ``seed`` draws the donors and the resamples of the intervals. Raises ``DataError`` when some window has no partner
    in another document. Backward runs through ``horizon`` tokens only: the prefix is read without a graph.
    """
    inputs, targets, _ = next(windows.batches(len(windows)))
    inputs_nT, targets_nT = (to_device(tokens, torch.device(device)) for tokens in (inputs, targets))
    horizon = min(HORIZON, max(windows.length // 4, 1))
    boundaries = boundaries_of(windows.length, horizon)
    partner = donors(windows.documents, seed)
    states = states_at(model, inputs_nT, boundaries, rows_at_once(BATCH, windows.length, device))
    found = [
        _exchange(Text(model, inputs_nT[:, t : t + horizon], targets_nT[:, t : t + horizon]), state, partner)
        for t, state in zip(boundaries, states, strict=True)
    ]
    middle = boundaries.index(windows.length // 2)
    predicted_pn, true_pn = _single_heads(found[middle])
    summary = _Summary(found, windows.documents, seed)
    branches = long_branches(states[0])
    ratio, shares, off = summary.between(branches)
    # a backward pass counts as two forward ones
    passes = len(boundaries) * (len(branches) + 4)
    return Coupling(
        branches=branches,
        strength={branch: strength(summary.square(branch), seed=seed) for branch in branches},
        layers=summary.layers(branches),
        ratio=ratio,
        shares=shares,
        true={branch: summary.true(branch) for branch in branches},
        agreement=rank_agreement(predicted_pn, true_pn),
        pairs=true_pn.numel(),
        distortion=off,
        horizon=horizon,
        boundaries=boundaries,
        windows=len(windows),
        documents=windows.num_documents,
        model_tokens=len(windows) * (boundaries[-1] + passes * horizon) + true_pn.numel() * horizon,
    )


@dataclass(frozen=True)
class Text:
    """What follows a boundary, teacher-forced: inputs and targets ``[n, h]``."""

    model: nn.Module
    inputs_nh: Tensor
    targets_nh: Tensor

    def first(self, count: int) -> "Text":
        """The first rows only."""
        return Text(self.model, self.inputs_nh[:count], self.targets_nh[:count])

    def loss(self, state: State) -> Tensor:
        """Cross entropy of all targets of a row together, nats, ``[n]`` fp64, from ``state``."""
        with observing(self.model):
            parts = [self._loss(_rows(state, rows), rows) for rows in self._batches()]
        return torch.cat(parts).double().cpu()

    def gradients(self, state: State) -> dict[StatePath, Tensor]:
        """Gradient of ``loss`` with respect to every LONG tensor; 0 for what the model does not read."""
        with observing(self.model), torch.enable_grad():
            parts = [self._gradients(_rows(state, rows), rows) for rows in self._batches()]
        return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}

    def _gradients(self, state: State, rows: slice) -> dict[StatePath, Tensor]:
        leaves = {path: t.detach().requires_grad_() for path, t in state.long_items() if t.is_floating_point()}
        total = self._loss(state.map(lambda path, tensor: leaves.get(path, tensor)), rows).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def _loss(self, state: State, rows: slice) -> Tensor:
        logits_bhV = self.model(self.inputs_nh[rows], state, return_states=True)[0]
        logits_bhV = logits_bhV.float() if logits_bhV.dtype in (torch.float16, torch.bfloat16) else logits_bhV
        targets_bh = self.targets_nh[rows]
        return F.cross_entropy(logits_bhV.mT, targets_bh, reduction="none").sum(1)

    def _batches(self) -> list[slice]:
        rows = rows_at_once(BATCH, self.inputs_nh.shape[1], self.inputs_nh.device)
        return [slice(begin, begin + rows) for begin in range(0, len(self.inputs_nh), rows)]


def _rows(state: State, rows: slice) -> State:
    return state.map(lambda _, tensor: tensor[rows])


def head_products(gradients: Mapping[StatePath, Tensor], state: State, donor: State) -> dict[Site, Tensor]:
    """``g . (S' - S)`` of every head, ``[n, H]`` fp64 a site; the kinds of a site are added up.

    Matrix states have heads on their second axis; a site whose tensors have none counts as one head.
    """
    ours, theirs = dict(state.items()), dict(donor.items())
    heads = _heads(state)
    products: dict[Site, Tensor] = {}
    for path, gradient in gradients.items():
        site = (path.layer, path.branch)
        change = gradient.double() * (theirs[path].double() - ours[path].double())
        by_head_nH = change.reshape(len(change), heads[site], -1).sum(-1).cpu()
        products[site] = products[site] + by_head_nH if site in products else by_head_nH
    return products


def _heads(state: State) -> dict[Site, int]:
    """Heads of every site: 1 unless all its LONG tensors are matrices with the same number of them."""
    counts: dict[Site, set[int]] = defaultdict(set)
    for path, tensor in state.long_items():
        counts[path.layer, path.branch].add(tensor.shape[1] if tensor.ndim >= 4 else 1)
    return {site: found.pop() if len(found) == 1 else 1 for site, found in counts.items()}


@dataclass(frozen=True)
class _Exchange:
    """One boundary: first-order products of all heads, and the true change of the loss by branch ``[n]``."""

    text: Text
    state: State
    donor: State
    clean_n: Tensor
    products: dict[Site, Tensor]
    changes: dict[str, Tensor]


def _exchange(text: Text, state: State, partner: NDArray[np.int64]) -> _Exchange:
    donor = state.rows(partner.tolist())
    clean_n = text.loss(state)
    changes = {branch: text.loss(swap(state, donor, branch)) - clean_n for branch in long_branches(state)}
    return _Exchange(text, state, donor, clean_n, head_products(text.gradients(state), state, donor), changes)


def _single_heads(found: _Exchange) -> tuple[Tensor, Tensor]:
    """First-order and true effect of exchanging one head, ``[heads, windows]`` each, for some heads and windows."""
    heads = [(site, head) for site, products_nH in found.products.items() for head in range(products_nH.shape[1])]
    kept = np.linspace(0, len(heads) - 1, min(HEADS, len(heads))).round().astype(int)
    rows = slice(0, HEAD_WINDOWS)
    text, state, donor = found.text.first(HEAD_WINDOWS), _rows(found.state, rows), _rows(found.donor, rows)
    # in as many rows as with a head of another text: kernels may round another number of rows in another way
    clean_n = text.loss(state)
    predicted, true = [], []
    for site, head in (heads[index] for index in kept):
        predicted.append(found.products[site][rows, head])
        true.append(text.loss(_swap_head(state, donor, site, head)) - clean_n)
    return torch.stack(predicted), torch.stack(true)


def _swap_head(state: State, donor: State, site: Site, head: int) -> State:
    """The state with one head of one layer and branch taken from the donor."""
    theirs, count = dict(donor.items()), _heads(state)[site]

    def taken(path: StatePath, tensor: Tensor) -> Tensor:
        if (path.layer, path.branch) != site or path.kind in SHORT_KINDS:
            return tensor
        mixed = tensor.clone().view(len(tensor), count, -1)
        mixed[:, head] = theirs[path].reshape(mixed.shape)[:, head]
        return mixed.view_as(tensor)

    return state.map(taken)


@dataclass(frozen=True)
class _Summary:
    """From products to strengths."""

    found: Sequence[_Exchange]
    documents: NDArray[np.int64]
    seed: int

    def square(self, branch: str, layer: int | None = None) -> ClusterRatio:
        """K^2 by document, heads and layers (or one layer) inside the product."""
        columns = [
            torch.stack([p.sum(1) for (at, name), p in one.products.items() if name == branch and layer in (None, at)])
            for one in self.found
        ]
        return mean_square(torch.stack([column.sum(0) for column in columns], 1).numpy(), self.documents)

    def layers(self, branches: Sequence[str]) -> dict[str, dict[int, float]]:
        sites = self.found[0].products
        return {
            branch: {at: strength(self.square(branch, at), seed=self.seed).value for at, b in sites if b == branch}
            for branch in branches
        }

    def true(self, branch: str) -> float:
        changes_np = torch.stack([one.changes[branch] for one in self.found], 1).numpy()
        return strength(mean_square(changes_np, self.documents), seed=self.seed).value

    def between(self, branches: Sequence[str]) -> tuple[Interval | None, dict[str, Interval] | None, float | None]:
        """Ratio, shares and distortion of two branches; None for any other number of them."""
        if len(branches) != 2:
            return None, None, None
        first, second = branches
        compared = compare(self.square(first), self.square(second), seed=self.seed)
        linear = strength(self.square(first), seed=self.seed).value, strength(self.square(second), seed=self.seed).value
        off = distortion(linear, (self.true(first), self.true(second)))
        return compared.ratio, {first: compared.first, second: compared.second}, off
