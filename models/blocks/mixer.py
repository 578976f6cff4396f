"""What every mixer offers to the stack: RWKV-6 time-mix, Mamba-2, attention."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MixerState = Mapping[str, Tensor]


@dataclass(frozen=True)
class StateSpec:
    """Shape and dtype of one state tensor. A dtype of None is any floating one.

    A dimension of None is free: it grows by one with each position, as keys and values do.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype | None

    def zeros(self, device: torch.device, default_dtype: torch.dtype) -> Tensor:
        """The tensor before the first token; free dimensions are empty."""
        shape = [0 if size is None else size for size in self.shape]
        return torch.zeros(shape, device=device, dtype=self.dtype or default_dtype)

    @property
    def growing_dim(self) -> int | None:
        """The free dimension, None where there is none."""
        return self.shape.index(None) if None in self.shape else None

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor may take this place."""
        return (
            len(self.shape) == tensor.dim()
            and all(want in (None, size) for want, size in zip(self.shape, tensor.shape, strict=True))
            and (tensor.is_floating_point() if self.dtype is None else tensor.dtype == self.dtype)
        )

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"[{sizes}] {'floating' if self.dtype is None else str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class MixerOutput:
    """What a mixer returns: its output ``[B,T,D]``, its final state, and what it observed (None unless asked).

    state       by kind; may be empty where ``keep_state`` was False
    decay       multiplier of the state at each position, RWKV-6 ``[B,T,H,K]``, Mamba-2 ``[B,T,H]``
    innovation  share of the state that is new at each position, ``[B,T,H]``
    """

    y: Tensor
    state: dict[str, Tensor]
    decay: Tensor | None = None
    innovation: Tensor | None = None


class Mixer(nn.Module, ABC):
    """A sequence mixer. ``state`` None means zeros; ``observe`` adds observations and changes nothing else.

    ``lengths_B`` None means that all positions are real. Else row b is padding from position ``lengths_B[b]`` on:
    padding changes no output before it, and the final state is the one after the last real position. A state that
    grows holds the padding too, at its end, and the stack cuts it off.

    ``keep_state`` False means that nobody reads the final state: a mixer that saves work by it may return none.
    """

    @abstractmethod
    def forward(
        self,
        u_BTD: Tensor,
        state: MixerState | None = None,
        observe: bool = False,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> MixerOutput:
        """Mix the positions of ``u_BTD``."""

    @abstractmethod
    def state_spec(self, batch_size: int) -> dict[str, StateSpec]:
        """The tensors of this mixer's state, by kind."""
