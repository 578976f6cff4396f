"""States of any size as a fixed number of features, so that a probe has the same capacity wherever it looks."""

import zlib
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from models.protocol import State, StatePath

Site = tuple[int, str]
"""One branch of one layer."""


@dataclass
class Sketcher:
    """Brings a LONG state to ``width`` features: every entry is standardised, given a random sign and added to a bin.

    Inner products survive in expectation (Weinberger et al., ICML 2009). Means and deviations are those of the first
    batch that is read, which belongs to the training half.
    """

    width: int
    seed: int
    _seen: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _order: dict[tuple[StatePath, int], Tensor] = field(default_factory=dict)

    def __call__(self, state: State, place: str) -> dict[Site, Tensor]:
        """Features ``[B, width]`` of each branch of each layer; the state's tensors of all LONG kinds go in.

        ``place`` says where in the prompt the state was taken: each place has its own means and deviations.
        """
        found: dict[Site, Tensor] = {}
        for path, tensor in state.long_items():
            flat_BF = tensor.detach().flatten(1).float()
            name = f"{path} {place}"
            if name not in self._seen:
                self._seen[name] = self._scale(flat_BF, path)
            mean, inverse = self._seen[name]
            sketch = self._bin((flat_BF - mean) * inverse, path)
            site = (path.layer, path.branch)
            found[site] = found[site] + sketch if site in found else sketch
        return found

    def _scale(self, flat_BF: Tensor, path: StatePath) -> tuple[Tensor, Tensor]:
        """Mean of every entry and sign over deviation; 0 for an entry that does not vary."""
        assert len(flat_BF) > 1, "one row has no deviation"
        deviation = flat_BF.std(0)
        signs = 2 * torch.randint(2, deviation.shape, generator=self._generator(path)) - 1
        return flat_BF.mean(0), torch.where(deviation > 0, signs.to(flat_BF) / deviation, torch.zeros_like(deviation))

    def _bin(self, entries_BF: Tensor, path: StatePath) -> Tensor:
        size = entries_BF.shape[1]
        if (path, size) not in self._order:
            self._order[path, size] = torch.randperm(size, generator=self._generator(path)).to(entries_BF.device)
        shuffled = entries_BF[:, self._order[path, size]]
        return F.pad(shuffled, (0, -size % self.width)).reshape(len(shuffled), -1, self.width).sum(1)

    def _generator(self, path: StatePath) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + zlib.crc32(str(path).encode()))
