"""The model contract: what everything above the kernels may ask of a model.

Legend  B batch, T positions, D model width, L layers, H heads, K RWKV-6 key size, V RWKV-6 value size,
        P Mamba-2 head size, N Mamba-2 state size, C convolution channels.

A model meets the contract when it offers

    logits_BTV = model(tokens_BT)
    logits_BTV, state = model(tokens_BT, state=None, return_states=True)
    logits_BTV, acts = model(tokens_BT, return_activations=True)
    logits_BTV, state, acts = model(tokens_BT, state, return_states=True, return_activations=True)

    logits_BTV = model(tokens_BT, segments=segments_BT)           and with all of the above

and ``model(x[:, :t])`` followed by ``model(x[:, t:], state)`` equals ``model(x)`` for logits, gradients and
final state. Hooks beyond the logits are optional: ``capabilities`` says which ones a model has, and a
check whose hook is missing reports MISSING, never a proxy.

``segments_BT``, int64, says which document each position belongs to: n > 0 for document n, 0 for padding. Padding may
stand anywhere; it reads and writes no state, its tokens are not looked at, and its logits are finite and mean
nothing. A document is read as if it were alone: it starts from the initial state, but the first one of a row from the
state that was passed in. The returned state is the one after the last real position of a row; a row that is padding
only keeps what came in. The number of a document may not come back in its row after another one.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# Kinds that hold only the last few inputs. Every other kind is a LONG state: it may remember without limit.
SHORT_KINDS = frozenset({"shift_att", "shift_ffn", "conv"})

# The stacked views of the original quick start: key -> (branch, kind).
STACKED_VIEWS = {"rwkv_state": ("rwkv", "wkv"), "mamba_state": ("mamba", "ssm")}

LayerState = Mapping[str, Mapping[str, Tensor]]


class StateError(ValueError):
    """A state does not fit: wrong layer count, branch, kind, shape or dtype. The message says which."""


@dataclass(frozen=True)
class StatePath:
    """Where one tensor of a state lives."""

    layer: int
    branch: str
    kind: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.branch}.{self.kind}"


@dataclass(frozen=True)
class State:
    """The recurrent state of a whole model: per layer, per branch, per kind; batch first in every tensor.

    RWKV-6  ``rwkv.wkv [B,H,K,V] fp32``, ``rwkv.shift_att [B,D]`` and, where there is channel-mix,
            ``rwkv.shift_ffn [B,D]``. Mamba-2  ``mamba.ssm [B,H,P,N] fp32``, ``mamba.conv [B,C,w-1]``.
    Attention  ``attention.k``, ``attention.v`` ``[B,H,T,P]``.

    A state is a value: every method returns a new one and leaves this one as it was.

    ``gates`` holds the mixing gates of the pass that made this state, one tensor ``[B,T,1]`` or ``[B,T,D]`` a
    layer. They are an observation, not part of what is carried: passing a state back in ignores them.
    """

    layers: tuple[LayerState, ...]
    gates: tuple[Tensor, ...] = field(default=())

    @classmethod
    def of(cls, layers: Sequence[LayerState], gates: Sequence[Tensor] = ()) -> "State":
        """Build a state from nested plain containers, as a user's own model would."""
        return cls(tuple({b: dict(kinds) for b, kinds in layer.items()} for layer in layers), tuple(gates))

    @classmethod
    def cat(cls, parts: Sequence["State"]) -> "State":
        """One state of all documents, out of the states of batches of them, in that order. Gates are dropped."""
        tensors = [dict(part.items()) for part in parts]
        return parts[0].map(lambda path, _: torch.cat([part[path] for part in tensors]))

    def items(self) -> Iterator[tuple[StatePath, Tensor]]:
        """Every tensor with its path, in layer order."""
        for index, layer in enumerate(self.layers):
            for branch, kinds in layer.items():
                for kind, tensor in kinds.items():
                    yield StatePath(index, branch, kind), tensor

    def long_items(self) -> Iterator[tuple[StatePath, Tensor]]:
        """The tensors that may remember without limit: all but token shifts and convolution tails."""
        return ((path, tensor) for path, tensor in self.items() if path.kind not in SHORT_KINDS)

    @property
    def branches(self) -> tuple[str, ...]:
        """Branch names, each once, in order of first appearance."""
        return tuple(dict.fromkeys(path.branch for path, _ in self.items()))

    @property
    def nbytes(self) -> int:
        """Bytes of all carried tensors (gates excluded)."""
        return sum(tensor.nbytes for _, tensor in self.items())

    def map(self, function: Callable[[StatePath, Tensor], Tensor]) -> "State":
        """A state whose every tensor is ``function(path, tensor)``. Gates are dropped."""
        return State(
            tuple(
                {
                    branch: {kind: function(StatePath(index, branch, kind), t) for kind, t in kinds.items()}
                    for branch, kinds in layer.items()
                }
                for index, layer in enumerate(self.layers)
            )
        )

    def clone(self) -> "State":
        """A copy that shares no memory with this state and keeps the autograd graph."""
        return self.map(lambda _, tensor: tensor.clone())

    def detach(self) -> "State":
        """The same values, cut from the autograd graph."""
        return self.map(lambda _, tensor: tensor.detach())

    def zeros(self) -> "State":
        """A state of the same shapes and dtypes, all zero."""
        return self.map(lambda _, tensor: torch.zeros_like(tensor))

    def to(self, device: torch.device | str) -> "State":
        """The state on another device."""
        return self.map(lambda _, tensor: tensor.to(device))

    def rows(self, index: Sequence[int] | Tensor) -> "State":
        """The states of the documents ``index`` of the batch, in that order: a swap, a shuffle or a slice."""
        return self.map(lambda _, t: t[torch.as_tensor(index, device=t.device)])

    def replace(self, donor: "State", where: Callable[[StatePath], bool]) -> "State":
        """The state with the tensors selected by ``where`` taken from ``donor``."""
        taken = dict(donor.items())
        missing = [str(path) for path, _ in self.items() if where(path) and path not in taken]
        if missing:
            raise StateError(f"the donor state lacks {', '.join(missing)}")
        return self.map(lambda path, tensor: taken[path] if where(path) else tensor)

    def requires_grad_(self) -> "State":
        """Detached leaves that collect gradients."""
        return self.map(lambda _, tensor: tensor.detach().requires_grad_())

    def save(self, path: Path | str) -> None:
        """Write the state to one safetensors file."""
        from safetensors.torch import save_file

        tensors = {str(where): tensor.detach().contiguous() for where, tensor in self.items()}
        save_file(tensors, str(path), metadata={"groundthink_state": json.dumps({"num_layers": len(self.layers)})})

    @classmethod
    def load(cls, path: Path | str) -> "State":
        """Read what ``save`` wrote. Raises ``StateError`` when the file is not a saved state."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as handle:
            metadata = (handle.metadata() or {}).get("groundthink_state")
            if metadata is None:
                raise StateError(f"{path} is a safetensors file but not a saved state: use State.save to make one")
            layers: list[dict[str, dict[str, Tensor]]] = [{} for _ in range(json.loads(metadata)["num_layers"])]
            for name in handle.keys():  # noqa: SIM118 (safe_open is not iterable)
                _, index, branch, kind = name.split(".")
                layers[int(index)].setdefault(branch, {})[kind] = handle.get_tensor(name)
        return cls.of(layers)

    def __getitem__(self, key: str) -> Tensor:
        """The stacked views: ``rwkv_state [L,B,H,K,V]``, ``mamba_state [L,B,H,P,N]``, ``gate [L,B,T,...]``."""
        if key == "gate":
            if not self.gates:
                raise KeyError("gate: this model has no mixing gate, or the state does not come from a forward pass")
            return torch.stack(self.gates)
        if key not in STACKED_VIEWS:
            raise KeyError(f"{key}: the stacked views are {', '.join([*STACKED_VIEWS, 'gate'])}")
        branch, kind = STACKED_VIEWS[key]
        found = [tensor for path, tensor in self.items() if (path.branch, path.kind) == (branch, kind)]
        if not found:
            raise KeyError(f"{key}: this model has no {branch} branch; it has {', '.join(self.branches) or 'none'}")
        return torch.stack(found)


@dataclass(frozen=True)
class LayerActivations:
    """What one layer did, by branch.

    writes       what the branch added to the residual stream, after fusion, ``[B,T,D]``
    decays       the multiplier of the state at each position, in [0, 1]: RWKV-6 ``[B,T,H,K]``, Mamba-2 ``[B,T,H]``
    innovations  ||S_t - A_t S_{t-1}|| / ||S_t||, the share of the state that is new, ``[B,T,H]``
    gate         mixing gate, share of RWKV-6, ``[B,T,1]`` or ``[B,T,D]``; None where there is none
    gate_logits  its pre-activation, same shape
    """

    writes: Mapping[str, Tensor]
    decays: Mapping[str, Tensor] = field(default_factory=dict)
    innovations: Mapping[str, Tensor] = field(default_factory=dict)
    gate: Tensor | None = None
    gate_logits: Tensor | None = None

    @classmethod
    def merge(
        cls, parts: Sequence["LayerActivations"], join: Callable[[Sequence[Tensor]], Tensor]
    ) -> "LayerActivations":
        """Activations of one layer from several passes: ``join`` makes one tensor of the same tensor of each."""

        def branches(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {branch: join([value[branch] for value in values]) for branch in values[0]}

        gates = [part.gate for part in parts if part.gate is not None]
        gate_logits = [part.gate_logits for part in parts if part.gate_logits is not None]
        return cls(
            writes=branches([part.writes for part in parts]),
            decays=branches([part.decays for part in parts]),
            innovations=branches([part.innovations for part in parts]),
            gate=join(gates) if gates else None,
            gate_logits=join(gate_logits) if gate_logits else None,
        )


@dataclass(frozen=True)
class Activations:
    """What every layer did in one pass."""

    layers: tuple[LayerActivations, ...]


@runtime_checkable
class StatefulModel(Protocol):
    """A model that meets the whole contract. ``capabilities`` tells which part of it a given model meets."""

    branches: tuple[str, ...]

    def branch_modules(self) -> Mapping[str, Sequence[nn.Module]]:
        """The mixer modules of each branch, one a layer; no FFN, norm, fusion or embedding."""
        ...

    def init_state(self, batch_size: int) -> State:
        """The state before the first token, on the model's device."""
        ...


@runtime_checkable
class CapturableModel(Protocol):
    """A model whose training updates on a GPU may be one CUDA graph: it says how. Not one of ``HOOKS``: no check asks.

    A model that inherits ``capturable_forward`` and overrides ``forward`` alone is taken for one without it.
    """

    def capturable_forward(self) -> Callable[[Tensor], Tensor]:
        """A function that gives what ``model(tokens_BT)`` gives, for the model where it is now.

        No host waits for the device in it, and what it launches depends on the shape of the tokens alone. It may be
        compiled.
        """
        ...


HOOKS = ("state", "activations", "branches", "branch_modules", "init_state", "segments")


def capabilities(model: nn.Module) -> frozenset[str]:
    """Which optional hooks a model has: names out of ``HOOKS``, judged by its attributes and forward's signature."""
    accepted = inspect.signature(model.forward).parameters
    found = {hook for hook in ("branches", "branch_modules", "init_state") if hasattr(model, hook)}
    if {"state", "return_states"} <= accepted.keys():
        found.add("state")
    if "return_activations" in accepted:
        found.add("activations")
    if "segments" in accepted:
        found.add("segments")
    return frozenset(found)
