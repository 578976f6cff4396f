"""Conversations kept apart by their states: A, then B, then A again must be A without B, to the bit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.trace import observing


@dataclass(frozen=True)
class Isolation:
    """How many of ``pairs`` were bit-equal in logits and state after every turn, and the largest difference seen."""

    pairs: int
    equal: int
    largest: float


def interleave(
    model: nn.Module, conversations: Sequence[tuple[Tensor, Tensor]], *, turns: int, device: str
) -> Isolation:
    """Read pairs of conversations by turns, each from its own state, and each again without the other.

    conversations  pairs of token ids ``[T]``, cut into ``turns`` pieces. Same calls, same shapes: nothing may differ,
    whatever the device. The model must have the hook ``state``.
    """
    equal, largest = 0, 0.0
    with observing(model):
        for first, second in conversations:
            pieces = [list(torch.tensor_split(tokens.to(device)[None], turns, dim=1)) for tokens in (first, second)]
            together = _by_turns(model, pieces)
            alone = [_by_turns(model, [piece])[0] for piece in pieces]
            apart = [
                float((mixed.double() - single.double()).abs().max())
                for with_other, by_itself in zip(together, alone, strict=True)
                for mixed, single in zip(with_other, by_itself, strict=True)
            ]
            # NaN is no agreement
            equal += all(difference == 0 for difference in apart)
            largest = max(largest, *apart)
    return Isolation(len(conversations), equal, largest)


def _by_turns(model: nn.Module, pieces: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Logits of every turn and the state at the end, of each conversation."""
    states = [None for _ in pieces]
    found: list[list[Tensor]] = [[] for _ in pieces]
    for turn in range(len(pieces[0])):
        for who, conversation in enumerate(pieces):
            logits_BTV, states[who] = model(conversation[turn], states[who], return_states=True)
            found[who].append(logits_BTV)
    for who, state in enumerate(states):
        assert state is not None, "every conversation has a turn"
        found[who] += [tensor for _, tensor in state.items()]
    return found
