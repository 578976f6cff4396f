"""S1 and S2 of a model on text: how large its states are for what was written, and how far texts drive them apart."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.batching import rows_at_once
from harness.data import Windows
from harness.evaluation import to_device
from harness.metrics.intervals import ClusterRatio, Interval, bootstrap_ratio
from harness.metrics.magnitude import headroom, memory_length, relative_distance, write_ratio
from harness.state_shapes import grows
from harness.trace import state_after, trace
from models.protocol import Activations, State, StatePath

BATCH = 16
"""Windows of one pass on a CPU."""

EARLY = 32
"""Tokens after which a state is first looked at."""

STRIDE = 8
"""Every how many tokens a write is looked at."""

EDIT_LAG = 16
"""Tokens between the earlier of the two edits and the end of the text."""


@dataclass(frozen=True)
class Magnitude:
    """One LONG tensor after ``position`` tokens, over all texts.

    ratios      RMS(S) / (RMS(write) sqrt(memory length)) of each head; None where the model reports no innovations of
                this branch, or where the tensor is a cache (attention), which nothing is accumulated in
    cache       the tensor holds one entry a token
    rms         root mean square of the entries of each head, in the state's own unit
    headroom    largest number of its dtype over its largest entry
    non_finite  entries that are NaN or infinite
    zero_heads  heads that are zero on every text
    """

    layer: int
    branch: str
    kind: str
    position: int
    ratios: list[float] | None
    cache: bool
    rms: list[float]
    headroom: float
    non_finite: int
    zero_heads: int

    @property
    def extreme_head(self) -> int:
        """The head whose ratio is furthest from 1, up or down; one whose ratio is no positive number comes first."""
        assert self.ratios, "ask for ratios before asking which is extreme"
        far = [abs(math.log(r)) if math.isfinite(r) and r > 0 else math.inf for r in self.ratios]
        return far.index(max(far))


@dataclass(frozen=True)
class Magnitudes:
    """All of them, and what they were measured on."""

    found: list[Magnitude]
    num_windows: int
    num_documents: int


@dataclass(frozen=True)
class Motion:
    """How far one LONG tensor is driven by what is read: relative distances 2 ||a - b|| / (||a|| + ||b||).

    pairs  texts of different documents; edit, early_edit  one token changed: the last one, or ``EDIT_LAG`` before it
    """

    layer: int
    branch: str
    kind: str
    pairs: Interval
    edit: Interval
    early_edit: Interval


@dataclass(frozen=True)
class Motions:
    """All of them; empty when no two windows lie in different documents."""

    found: list[Motion]
    num_windows: int
    num_documents: int


def measure_magnitudes(model: nn.Module, windows: Windows, *, device: str) -> Magnitudes:
    """Sizes of all LONG tensors after ``EARLY`` tokens and at the end of the windows."""
    tokens_BT = _tokens(windows, device)
    caches = grows(model, tokens_BT[:1])
    positions = range(STRIDE, windows.length + 1, STRIDE)
    parts = [
        trace(model, batch_BT, positions)
        for batch_BT in torch.split(tokens_BT, rows_at_once(BATCH, windows.length, device))
    ]
    kept = [p for p in (EARLY, windows.length) if p in positions]
    found = []
    for path, _ in parts[0].states[0].long_items():
        energy_BPH = torch.cat([_energies(part.states, path) for part in parts])
        memory, write_BPH = _observed(path, [part.activations for part in parts], energy_BPH, list(positions))
        for position in kept:
            index = positions.index(position)
            states = torch.cat([dict(part.states[index].items())[path] for part in parts])
            ratios = None
            if memory is not None and write_BPH is not None and (path.branch, path.kind) not in caches:
                ratios = write_ratio(energy_BPH[:, index], write_BPH[:, : index + 1], memory[:, index]).tolist()
            rms_H = energy_BPH[:, index].mean(0).sqrt()
            found.append(
                Magnitude(
                    path.layer, path.branch, path.kind, position, ratios, (path.branch, path.kind) in caches,
                    rms_H.tolist(), headroom(states), int((~states.isfinite()).sum()), int((rms_H == 0).sum()),
                )
            )  # fmt: skip
    return Magnitudes(found, len(windows), windows.num_documents)


def _tokens(windows: Windows, device: str) -> Tensor:
    inputs_BT, _, _ = next(iter(windows.batches(len(windows))))
    return to_device(inputs_BT, torch.device(device))


def _energies(states: tuple[State, ...], path: StatePath) -> Tensor:
    """Mean square of the entries of each head at each position ``[B,P,H]``; a vector state counts as one head."""
    tensors = [dict(state.items())[path].double() for state in states]
    heads = [t.flatten(2) if t.dim() > 2 else t.flatten(1)[:, None] for t in tensors]
    return torch.stack([t_BHE.square().mean(-1) for t_BHE in heads], dim=1)


def _observed(
    path: StatePath, activations: list[Activations | None], energy_BPH: Tensor, positions: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    """Memory lengths and mean square writes at the positions, ``[B,P,H]`` both; None for what is not reported."""
    layers = [acts.layers[path.layer] for acts in activations if acts is not None]
    if not layers or path.branch not in layers[0].innovations or path.branch not in layers[0].decays:
        return None, None
    index = [position - 1 for position in positions]
    iota_BPH = torch.cat([layer.innovations[path.branch] for layer in layers])[:, index].double()
    if iota_BPH.shape != energy_BPH.shape:
        return None, None  # the innovations are those of another tensor of this branch
    memory_BTx = memory_length(torch.cat([layer.decays[path.branch] for layer in layers]))
    memory_BPH = memory_BTx[:, index].flatten(3).mean(-1) if memory_BTx.dim() > 3 else memory_BTx[:, index]
    return memory_BPH, iota_BPH.square() * energy_BPH


def measure_motions(model: nn.Module, windows: Windows, *, device: str, vocab_size: int, seed: int) -> Motions:
    """Distances between texts of different documents, and between a text and the same with one token edited."""
    tokens_BT = _tokens(windows, device)
    partner_n = different_documents(windows.documents)
    if partner_n is None:
        return Motions([], len(windows), windows.num_documents)
    ends: dict[str, list[State]] = defaultdict(list)
    for batch_BT in torch.split(tokens_BT, 16):
        before, tail_BT = batch_BT[:, : -EDIT_LAG - 1], batch_BT[:, -EDIT_LAG - 1 :]
        carried = state_after(model, before)
        for name, position in (("text", None), ("edit", EDIT_LAG), ("early", 0)):
            read_BT = tail_BT.clone()
            if position is not None:
                read_BT[:, position] = (read_BT[:, position] + 1) % vocab_size
            ends[name].append(state_after(model, read_BT, carried))
    found = []
    for path, _ in ends["text"][0].long_items():
        text, edit, early = (
            torch.cat([dict(state.items())[path] for state in ends[name]]) for name in ("text", "edit", "early")
        )
        intervals = [
            _mean(relative_distance(text, other), windows.documents, seed) for other in (text[partner_n], edit, early)
        ]
        found.append(Motion(path.layer, path.branch, path.kind, *intervals))
    return Motions(found, len(windows), windows.num_documents)


def different_documents(documents_n: NDArray[np.int64]) -> list[int] | None:
    """For each window one of another document, each used once; None when no rotation of the windows gives that."""
    count = len(documents_n)
    # by a third, so that no pair comes twice; then whatever is nearest to it
    for shift in sorted(range(1, count), key=lambda s: abs(s - count // 3)):
        partner_n = (np.arange(count) + shift) % count
        if (documents_n != documents_n[partner_n]).all():
            return [int(index) for index in partner_n]
    return None


def _mean(values_n: Tensor, documents_n: NDArray[np.int64], seed: int) -> Interval:
    values = values_n.cpu().numpy()
    return bootstrap_ratio(ClusterRatio.of(values, np.ones_like(values), documents_n), seed=seed)
