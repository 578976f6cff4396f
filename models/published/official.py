"""Loading tensors under the names that the authors of a model gave them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

PICKLED = (".pth", ".pt", ".bin")
Source = Path | str | Mapping[str, Tensor]


class OfficialFormatError(ValueError):
    """Tensors do not have the names or shapes of the official format. The message lists which."""


@dataclass(frozen=True)
class Name:
    """Where one parameter of ours comes from: its official names, and how they become it."""

    ours: str
    official: tuple[str, ...]
    convert: Callable[..., Tensor]


def same(ours: str, official: str) -> Name:
    """A tensor that both sides hold alike."""
    return Name(ours, (official,), lambda tensor: tensor)


def flat(ours: str, official: str) -> Name:
    """A vector that the official format holds with leading or trailing dimensions of 1."""
    return Name(ours, (official,), lambda tensor: tensor.flatten())


def transposed(ours: str, official: str) -> Name:
    """A matrix that the official format holds transposed."""
    return Name(ours, (official,), lambda tensor: tensor.T)


def norm_pair(ours: str, official: str) -> Iterator[Name]:
    """Weight and bias of a LayerNorm."""
    for part in ("weight", "bias"):
        yield same(f"{ours}.{part}", f"{official}.{part}")


def read_tensors(source: Source) -> dict[str, Tensor]:
    """Tensors by official name, from a mapping, a ``.safetensors`` file or a pickle read with ``weights_only=True``."""
    if isinstance(source, Mapping):
        return dict(source)
    suffix = Path(source).suffix
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(str(source))
        return tensors
    if suffix in PICKLED:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
            raise OfficialFormatError(f"{source} does not hold a mapping from names to tensors")
        return dict(loaded)
    raise OfficialFormatError(f"{source} ends in {suffix!r}; readable are .safetensors, {', '.join(PICKLED)}")


def require(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Raise ``OfficialFormatError`` unless all names are there: for those that the sizes are read from."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise OfficialFormatError(f"the official tensors lack {', '.join(missing)}")


def count_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the largest index after ``prefix``."""
    indices = [int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)]
    if not indices:
        raise OfficialFormatError(f"no tensor is called {prefix}<layer>...; is this another format?")
    return max(indices) + 1


def load_named(model: nn.Module, tensors: Mapping[str, Tensor], names: Iterable[Name]) -> None:
    """Copy official tensors into the parameters of ``model``; every one must be used and every parameter filled.

    Raises ``OfficialFormatError`` with all missing, unknown and misshapen names at once.
    """
    table = list(names)
    wanted = {official for name in table for official in name.official}
    problems = [f"missing {official}" for official in sorted(wanted - tensors.keys())]
    problems += [f"unknown {official}" for official in sorted(tensors.keys() - wanted)]
    if problems:
        raise OfficialFormatError("official tensors do not fit the model: " + ", ".join(problems))
    own = model.state_dict()
    converted = {name.ours: name.convert(*(tensors[official] for official in name.official)) for name in table}
    assert converted.keys() == own.keys(), "the name map must cover every parameter"
    problems = [
        f"{ours} is {list(tensor.shape)}, not {list(own[ours].shape)}"
        for ours, tensor in converted.items()
        if tensor.shape != own[ours].shape
    ]
    if problems:
        raise OfficialFormatError("official tensors have other shapes than the model: " + ", ".join(problems))
    model.load_state_dict(converted)
