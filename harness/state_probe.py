"""What a model's state and branches do on real documents: the samples behind G3.5, G4 and the state monitors.

Windows come from ``TokenDataset.validation_windows``; every array keeps the window as its first axis, so that
intervals can resample the documents the windows lie in.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.batching import rows_at_once
from harness.data import Windows
from models.protocol import Activations, State, capabilities

Floats = NDArray[np.float64]
Site = tuple[int, str]
"""One branch of one layer."""

BATCH = 16
"""Windows of one pass on a CPU."""


@dataclass
class BranchSample:
    """What one branch of one layer did on ``n`` windows.

    state        the LONG state after position ``t`` of each window, by kind, ``[n, ...]``
    innovations  ||S_t - A_t S_{t-1}|| / ||S_t|| at the sampled positions, ``[n, positions, H]``; empty when the model
                 does not report it
    decays       multipliers of the state at the sampled positions, flat
    writes       what the branch added to the residual at the sampled positions, ``[n, positions, D]``
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    innovations: Tensor = field(default_factory=lambda: torch.empty(0))
    decays: Tensor = field(default_factory=lambda: torch.empty(0))
    writes: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class ModelSample:
    """All branches of all layers on the same windows; mixing gates and their logits by layer, where there are any."""

    branches: dict[Site, BranchSample]
    gates: dict[int, Tensor]
    gate_logits: dict[int, Tensor]
    documents: NDArray[np.int64]
    positions: tuple[int, ...]

    @property
    def branch_names(self) -> tuple[str, ...]:
        """Branches in order of first appearance."""
        return tuple(dict.fromkeys(name for _, name in self.branches))

    @property
    def num_windows(self) -> int:
        """Number of windows."""
        return len(self.documents)

    @property
    def num_documents(self) -> int:
        """Number of documents: the clusters of an interval."""
        return len(np.unique(self.documents))


@torch.no_grad()
def sample_states(model: nn.Module, windows: Windows, *, device: str, positions: int = 8) -> ModelSample:
    """Run the model over the windows and keep states, writes, innovations and decays.

    ``positions`` places, spread evenly over the second half of the window (the first half fills the state), are
    kept of everything that has a position. The model must have the hook ``state``; without ``activations`` the sample
    holds states only.
    """
    hooks = capabilities(model)
    assert "state" in hooks, "ask models.protocol.capabilities before sampling"
    kept = tuple(int(p) for p in np.linspace(windows.length // 2, windows.length - 1, positions).round())
    parts: dict[Site, list[BranchSample]] = defaultdict(list)
    gates: dict[int, list[Tensor]] = defaultdict(list)
    gate_logits: dict[int, list[Tensor]] = defaultdict(list)
    documents = []
    for inputs_BT, _, rows in windows.batches(rows_at_once(BATCH, windows.length, device)):
        tokens_BT = torch.from_numpy(inputs_BT.astype(np.int64)).to(device)
        if "activations" in hooks:
            _, state, activations = model(tokens_BT, return_states=True, return_activations=True)
            _append_writes(parts, activations, kept)
            for layer, observed in enumerate(activations.layers):
                if observed.gate is not None:
                    gates[layer].append(observed.gate[:, list(kept)].cpu().double())
                if observed.gate_logits is not None:
                    gate_logits[layer].append(observed.gate_logits[:, list(kept)].cpu().double())
        else:
            _, state = model(tokens_BT, return_states=True)
        _append_state(parts, state, has_activations="activations" in hooks)
        documents.append(rows)
    return ModelSample(
        {site: _join(samples) for site, samples in parts.items()},
        {layer: torch.cat(values) for layer, values in gates.items()},
        {layer: torch.cat(logits) for layer, logits in gate_logits.items()},
        np.concatenate(documents),
        kept,
    )


def _append_writes(parts: dict[Site, list[BranchSample]], acts: Activations, kept: Sequence[int]) -> None:
    index = list(kept)
    for layer, activations in enumerate(acts.layers):
        for branch, writes_BTD in activations.writes.items():
            sample = BranchSample(writes=writes_BTD[:, index].cpu().double())
            if branch in activations.innovations:
                sample.innovations = activations.innovations[branch][:, index].cpu().double()
            if branch in activations.decays:
                sample.decays = activations.decays[branch][:, index].cpu().double().flatten()
            parts[layer, branch].append(sample)


def _append_state(parts: dict[Site, list[BranchSample]], state: State, *, has_activations: bool) -> None:
    fresh: set[Site] = set()
    for path, tensor in state.long_items():
        site = (path.layer, path.branch)
        if not has_activations and site not in fresh:
            parts[site].append(BranchSample())
            fresh.add(site)
        parts[site][-1].state[path.kind] = tensor.cpu().double()


def _join(samples: list[BranchSample]) -> BranchSample:
    return BranchSample(
        {kind: torch.cat([s.state[kind] for s in samples]) for kind in samples[0].state},
        torch.cat([s.innovations for s in samples]),
        torch.cat([s.decays for s in samples]),
        torch.cat([s.writes for s in samples]),
    )
