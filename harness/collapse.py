"""D2: has a state collapsed? Directions over documents, use of the spectrum, and likeness of the states of branches."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from harness.batching import rows_at_once
from harness.data import Windows
from harness.evaluation import to_device
from harness.metrics.cka import debiased_cka, gram, permutation_null
from harness.metrics.collapse import by_unit_head, participation_interval, participation_null, utilisation
from harness.metrics.intervals import Interval, bootstrap_ratio, pooled
from harness.metrics.spectrum import effective_rank
from harness.metrics.state import input_sensitivity
from harness.state_probe import BranchSample, ModelSample
from harness.trace import state_after
from models.protocol import StatePath

LIKENESS_WINDOWS, LIKENESS_LENGTH = 256, 64
"""Texts whose states are compared, and how long they are."""

RANKED_TEXTS = 16
"""Texts whose effective rank is taken: singular values of large states cost seconds, and the median moves little."""

BATCH = 32
"""Windows of one pass on a CPU."""

# [texts, heads, rows, columns]
_MATRIX_DIMS = 4


@dataclass(frozen=True)
class Spread:
    """How the state of one branch of one layer differs between texts at one position.

    directions   participation ratio of the covariance over texts, heads of unit size; null is that of noise
    rank         effective rank of the median head, and utilisation ln(rank) / ln min(K, V) of its matrices; None for
                 states that are no matrices
    """

    layer: int
    branch: str
    directions: Interval
    null: float
    rank: float | None
    utilisation: float | None


@dataclass(frozen=True)
class Spreads:
    """All of them, and rho = E||S - S_bar||^2 / E||S||^2 of each branch, layers pooled, as G3.5 has it."""

    sites: list[Spread]
    rho: dict[str, Interval]


def spreads(sample: ModelSample, seed: int) -> Spreads:
    """Every branch of every layer; ``seed`` is that of the intervals of rho."""
    rho = {
        branch: pooled([
            input_sensitivity(state, sample.documents)
            for (_, name), site in sorted(sample.branches.items()) if name == branch
            for state in site.state.values()
        ])
        for branch in sample.branch_names
    }  # fmt: skip
    sites = [_spread(layer, branch, site, sample) for (layer, branch), site in sorted(sample.branches.items())]
    return Spreads(sites, {branch: bootstrap_ratio(ratio, seed=seed) for branch, ratio in rho.items()})


def _spread(layer: int, branch: str, site: BranchSample, sample: ModelSample) -> Spread:
    flat_nE = torch.cat([by_unit_head(state) for state in site.state.values()], 1)
    # each matrix counts, whatever its shape: what is read off is a share of what its shape allows
    matrices = [state for state in site.state.values() if state.ndim >= _MATRIX_DIMS]
    ranks = [effective_rank(m[:RANKED_TEXTS]).flatten() for m in matrices]
    used = [utilisation(r, m.shape) for r, m in zip(ranks, matrices, strict=True)]
    return Spread(
        layer,
        branch,
        participation_interval(flat_nE, sample.documents),
        participation_null(*flat_nE.shape),
        _median(ranks),
        _median(used),
    )


def _median(values: Sequence[Tensor]) -> float | None:
    return float(torch.cat(list(values)).median()) if values else None


@dataclass(frozen=True)
class Likeness:
    """Debiased linear CKA of the states of all branches of all layers, over the same texts.

    sites        name of each: ``layer 0 rwkv``
    values       ``[site][site]``; 1 for states that are the same up to a rotation, 0 for unrelated ones
    branches     the pairs of branches of one layer: ``(layer, value, null)``, null the 95 % point of unrelated states
    """

    sites: list[str]
    values: list[list[float]]
    branches: list[tuple[int, float, float]]
    num_windows: int
    num_documents: int


def likeness(model: nn.Module, windows: Windows, *, device: str, seed: int) -> Likeness:
    """States at the end of the windows, compared; ``seed`` is that of the permutations. Needs the hook ``state``."""
    parts: dict[StatePath, list[Tensor]] = defaultdict(list)
    for inputs, _, _ in windows.batches(rows_at_once(BATCH, windows.length, device)):
        for path, state in state_after(model, to_device(inputs, torch.device(device))).long_items():
            parts[path].append(state.cpu())
    grams: dict[tuple[int, str], Tensor] = {}
    for path, states in parts.items():
        site = (path.layer, path.branch)
        # the inner products of what a branch carries are those of its tensors, summed
        grams[site] = grams.get(site, torch.zeros(())) + gram(by_unit_head(torch.cat(states)))
    sites = sorted(grams)
    values = [[debiased_cka(grams[a], grams[b]) for b in sites] for a in sites]
    neighbours = [(i, i + 1) for i, (a, b) in enumerate(pairwise(sites)) if a[0] == b[0]]
    branches = [
        (sites[i][0], values[i][j], permutation_null(grams[sites[i]], grams[sites[j]], seed=seed))
        for i, j in neighbours
    ]
    names = [f"layer {layer} {branch}" for layer, branch in sites]
    return Likeness(names, values, branches, len(windows), windows.num_documents)
