"""How a model's state evolves on real text: response to edits, retention of differences, growth of perturbations.

A model that reports decays claims that each layer's LONG state is linear, S_t = A_t S_{t-1} + write_t. Then a
difference put into one layer's state alone must shrink by exactly the product of the reported decays, as nothing below
that layer changes; and the state must be affine in its start. Both are measured through the model's own forward pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.data import Windows
from harness.evaluation import to_device
from harness.metrics.evolution import growth_exponent, half_life, half_life_interval, monotonicity
from harness.metrics.intervals import LEVEL, RESAMPLES, ClusterRatio, Interval, bootstrap_ratio
from harness.metrics.magnitude import relative_distance
from harness.trace import state_after, trace
from models.protocol import SHORT_KINDS, LayerActivations, State, StatePath

DOSES = (0, 1, 2, 4, 8, 16)
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
BLOCK, BLOCKS = 16, 4
EPSILON = 1e-3
SUPERPOSITION_TOKENS = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRetention:
    """What is left of a difference in one layer's LONG state after each of ``LAGS`` tokens.

    retained, implied    measured, and from the reported decays; implied is None for a model that reports none
    half_life            tokens, with its interval over documents; ``implied_half_life`` from the decays
    superposition_error  ||f(a + b) - f(a) - f(b) + f(0)|| / ||f(a + b)||, None where no linear state is claimed
    """

    retained: list[float]
    half_life: Interval
    implied: list[float] | None = None
    implied_half_life: float | None = None
    superposition_error: float | None = None


@dataclass(frozen=True)
class BranchEvolution:
    """One branch: relative state distances by number of edited tokens and by the lag of one edit, layers averaged."""

    dose: dict[int, Interval]
    dose_monotonicity: Interval
    edit: dict[int, Interval]
    lyapunov: Interval
    layers: dict[int, LayerRetention]


@dataclass(frozen=True)
class Evolution:
    """All branches on the same windows."""

    branches: dict[str, BranchEvolution]
    n: int
    n_documents: int


def is_long(path: StatePath) -> bool:
    """Whether a tensor may remember without limit."""
    return path.kind not in SHORT_KINDS


def evolution(model: nn.Module, windows: Windows, donors: Sequence[int], *, device: str, vocab_size: int) -> Evolution:
    """Measure on windows of at least 256 tokens; ``donors[i]`` is a window of another document than window i.

    The model must have the hook ``state`` and a state whose size does not grow with what was read.
    """
    assert windows.length >= 2 * LAGS[-1]
    inputs, _, documents = next(windows.batches(len(windows)))
    tokens_BT = to_device(inputs, torch.device(device))
    start = windows.length - LAGS[-1]
    head_BT, tail_BT = tokens_BT[:, :start], tokens_BT[:, start:]
    state = state_after(model, head_BT)
    donor = state.rows(torch.as_tensor(donors))
    retention = _Retention(model, tail_BT, state, donor, documents)
    edited = _Edits(model, head_BT, vocab_size, documents)
    doses = {dose: edited.dose(dose) for dose in DOSES}
    lags = {lag: edited.lag(lag) for lag in LAGS if lag < start}
    return Evolution(
        {
            branch: BranchEvolution(
                {dose: _mean(found[branch], documents) for dose, found in doses.items()},
                _dose_order({dose: found[branch] for dose, found in doses.items()}, documents),
                {lag: _mean(found[branch], documents) for lag, found in lags.items()},
                _lyapunov(model, tail_BT, state, branch, documents),
                retention.of(branch),
            )
            for branch in dict.fromkeys(path.branch for path, _ in state.long_items())
        },
        len(documents),
        len(np.unique(documents)),
    )


class _Edits:
    """Distance of the LONG state to that of an edited text, a branch and window, layers averaged."""

    def __init__(self, model: nn.Module, tokens_BT: Tensor, vocab_size: int, documents: NDArray[np.int64]) -> None:
        self.model, self.tokens_BT, self.vocab_size = model, tokens_BT, vocab_size
        self.state = state_after(model, tokens_BT)
        # which of the last places are edited first: another order in every window, the same for every dose
        generator = torch.Generator().manual_seed(0)
        self.order_BK = torch.rand(len(documents), DOSES[-1], generator=generator).argsort(1).to(tokens_BT.device)

    def dose(self, count: int) -> dict[str, Floats]:
        """``count`` of the 16 tokens that lie 17 to 32 tokens back."""
        where_BK = self.tokens_BT.shape[1] - 2 * DOSES[-1] + self.order_BK[:, :count]
        return self._distance(where_BK)

    def lag(self, lag: int) -> dict[str, Floats]:
        """The token ``lag`` places from the end; 1 is the last one."""
        rows = len(self.tokens_BT)
        return self._distance(torch.full((rows, 1), self.tokens_BT.shape[1] - lag, device=self.tokens_BT.device))

    def _distance(self, where_BK: Tensor) -> dict[str, Floats]:
        edited_BT = self.tokens_BT.clone()
        edited_BT.scatter_(1, where_BK, (self.tokens_BT.gather(1, where_BK) + 1) % self.vocab_size)
        by_branch: dict[str, list[Floats]] = {}
        other = dict(state_after(self.model, edited_BT).items())
        for path, tensor in self.state.long_items():
            distance_B = relative_distance(tensor, other[path])
            by_branch.setdefault(path.branch, []).append(distance_B.cpu().numpy())
        return {branch: np.mean(layers, axis=0) for branch, layers in by_branch.items()}


class _Retention:
    """Differences put into one layer's state, followed through the text that comes next."""

    def __init__(
        self, model: nn.Module, tokens_BT: Tensor, state: State, donor: State, documents: NDArray[np.int64]
    ) -> None:
        self.model, self.tokens_BT, self.state, self.donor, self.documents = model, tokens_BT, state, donor, documents
        self.own = trace(model, tokens_BT, LAGS, state=state)
        self.swapped = {
            layer: trace(model, tokens_BT, LAGS, state=self._with_layer(donor, layer), activations=False)
            for layer in sorted({path.layer for path, _ in state.long_items()})
        }
        self.affine = {layer: self._affine(layer) for layer in self.swapped} if self._claims_linear() else {}

    def of(self, branch: str) -> dict[int, LayerRetention]:
        """Every layer that holds the branch."""
        return {
            path.layer: self._layer(path, tensor) for path, tensor in self.state.long_items() if path.branch == branch
        }

    def _layer(self, path: StatePath, start: Tensor) -> LayerRetention:
        start_difference = dict(self.donor.items())[path].double() - start.double()
        initial_B = _row_norms(start_difference).square()
        left_MB = torch.stack(
            [
                _row_norms(dict(swapped.items())[path].double() - dict(own.items())[path].double()).square()
                for own, swapped in zip(self.own.states, self.swapped[path.layer].states, strict=True)
            ]
        )
        over_DM, under_D = self._by_document(left_MB), self._by_document(initial_B[None])[:, 0]
        retained = np.sqrt(over_DM.sum(0) / under_D.sum())
        measured = half_life_interval(LAGS, over_DM, under_D, seed=path.layer)
        decays = self._decays(path)
        if decays is None:
            return LayerRetention(retained.tolist(), measured)
        implied = self._implied(start_difference, decays)
        return LayerRetention(
            retained.tolist(), measured, implied, half_life(LAGS, implied), self.affine[path.layer].get(path.branch)
        )

    def _implied(self, difference: Tensor, decays_BTx: Tensor) -> list[float]:
        product = decays_BTx.double().cumprod(1)
        shares = []
        for lag in LAGS:
            factor = product[:, lag - 1]
            while factor.dim() < difference.dim():
                factor = factor[..., None]
            shares.append(float((factor * difference).norm() / difference.norm()))
        return shares

    def _decays(self, path: StatePath) -> Tensor | None:
        if self.own.activations is None:
            return None
        layer: LayerActivations = self.own.activations.layers[path.layer]
        return layer.decays.get(path.branch)

    def _claims_linear(self) -> bool:
        return self.own.activations is not None and any(layer.decays for layer in self.own.activations.layers)

    def _affine(self, layer: int) -> dict[str, float]:
        """Departure of one layer's final state from an affine function of its first state, by branch."""
        text_BT = self.tokens_BT[:, :SUPERPOSITION_TOKENS]
        total = self.state.map(lambda path, tensor: tensor + self.donor_of(path) if is_long(path) else tensor)
        ends = [
            dict(state_after(self.model, text_BT, self._with_layer(given, layer)).items())
            for given in (total, self.state, self.donor, self.state.zeros())
        ]
        return {
            path.branch: float(
                (
                    ends[0][path].double() - ends[1][path].double() - ends[2][path].double() + ends[3][path].double()
                ).norm()
                / ends[0][path].double().norm()
            )
            for path, _ in self.state.long_items()
            if path.layer == layer
        }

    def donor_of(self, path: StatePath) -> Tensor:
        """The donor's tensor at a path."""
        return dict(self.donor.items())[path]

    def _with_layer(self, given: State, layer: int) -> State:
        return self.state.replace(given, lambda path: path.layer == layer and is_long(path))

    def _by_document(self, values_MB: Tensor) -> Floats:
        array = values_MB.cpu().numpy()
        columns = [ClusterRatio.of(row, np.ones(len(row)), self.documents).numerators for row in array]
        return np.stack(columns, axis=1)


def _lyapunov(model: nn.Module, tokens_BT: Tensor, state: State, branch: str, documents: NDArray[np.int64]) -> Interval:
    """Growth of a small random difference in all LONG states of a branch, in 1 / token, seen in all LONG states.

    Sizes are relative to the states as they were before the first block, so that a growing state does not hide a
    growing difference.
    """
    generator = torch.Generator().manual_seed(0)
    scale = {path: _row_norms(tensor.double()).clamp_min(1e-30) for path, tensor in state.long_items()}

    def nudge(path: StatePath, tensor: Tensor) -> Tensor:
        if path.branch != branch or not is_long(path):
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        size = EPSILON * scale[path] / _row_norms(noise)
        return (tensor.double() + _rowwise(size, noise) * noise).to(tensor.dtype)

    own, other = state, state.map(nudge)
    logs = []
    for block in range(BLOCKS):
        text_BT = tokens_BT[:, block * BLOCK : (block + 1) * BLOCK]
        before_B = _size(own, other, scale)
        own, other = state_after(model, text_BT, own), state_after(model, text_BT, other)
        after_B = _size(own, other, scale)
        logs.append((after_B / before_B).log().cpu().numpy())
        other = _rescaled(own, other, before_B / after_B)
    exponents = growth_exponent(np.stack(logs, axis=1), BLOCK)
    return _mean(exponents, documents)


def _rescaled(own: State, other: State, factor_B: Tensor) -> State:
    moved = dict(other.items())
    return own.map(
        lambda path, tensor: (
            (tensor.double() + _rowwise(factor_B, tensor) * (moved[path].double() - tensor.double())).to(tensor.dtype)
            if is_long(path)
            else moved[path]
        )
    )


def _size(own: State, other: State, scale: dict[StatePath, Tensor]) -> Tensor:
    moved = dict(other.items())
    parts = [(_row_norms(moved[p].double() - t.double()) / scale[p]).square() for p, t in own.long_items()]
    return torch.stack(parts).sum(0).sqrt()


def _row_norms(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1).double(), dim=1)
    return norms


def _rowwise(values_B: Tensor, like: Tensor) -> Tensor:
    return values_B.view(-1, *[1] * (like.dim() - 1))


def _mean(values: Floats, documents: NDArray[np.int64]) -> Interval:
    return bootstrap_ratio(ClusterRatio.of(values, np.ones(len(values)), documents), seed=0)


def _dose_order(doses: dict[int, Floats], documents: NDArray[np.int64]) -> Interval:
    """Spearman's correlation of dose and mean distance; the interval resamples documents."""
    sums = np.stack([ClusterRatio.of(v, np.ones(len(v)), documents).numerators for v in doses.values()], axis=1)
    count = len(sums)
    draws = np.random.default_rng(0).integers(0, count, size=(RESAMPLES // 4, count))
    order: Callable[[Floats], float] = lambda totals: monotonicity(list(doses), totals)  # noqa: E731
    found = np.array([order(total) for total in sums[draws].sum(1)])
    if np.isnan(found).any():
        return Interval(order(sums.sum(0)), math.nan, math.nan, len(documents), count)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(order(sums.sum(0)), float(low), float(high), len(documents), count)
