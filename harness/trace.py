"""The state tracer: true states, writes, gates, decays and innovations of a model along its documents.

It asks the model for what it carries and never computes a stand-in. A trace runs beside the work that it looks at: it
leaves the mode, the random state and the autograd graph of the model alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.protocol import Activations, LayerActivations, State, capabilities


@dataclass(frozen=True)
class Trace:
    """What a model carried and did while it read ``tokens_BT``.

    positions    number of tokens read before each of ``states``, ascending
    states       the true state after that many tokens, one a position, detached, batch first
    activations  writes, gates, decays and innovations of all positions ``[B, T, ...]``; None for a model without them
    """

    positions: tuple[int, ...]
    states: tuple[State, ...]
    activations: Activations | None


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Eval mode and no graph inside; the model's mode and torch's random state are as before afterwards."""
    was_training = model.training
    with torch.random.fork_rng(devices=_cuda_devices(model)), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def trace(
    model: nn.Module,
    tokens_BT: Tensor,
    positions: Sequence[int],
    *,
    state: State | None = None,
    activations: bool = True,
) -> Trace:
    """Read ``tokens_BT`` and keep the state after each of ``positions`` (in 1 .. T, ascending).

    ``state`` is what the model carries before the first token. The text is read in pieces that end at the positions,
    the way a stream is served; the pieces after the last position are not read. The model must have the hook
    ``state``; ``activations`` are kept where the model has them and they are asked for.
    """
    hooks = capabilities(model)
    assert "state" in hooks, "ask models.protocol.capabilities before tracing"
    ends = tuple(positions)
    assert ends, "name at least one position"
    assert all(a < b for a, b in zip((0, *ends), ends, strict=False)), f"positions {ends} must ascend from 1"
    assert ends[-1] <= tokens_BT.shape[1], f"position {ends[-1]} lies beyond the {tokens_BT.shape[1]} tokens"
    observed = activations and "activations" in hooks
    states: list[State] = []
    pieces: list[Activations] = []
    with observing(model):
        for begin, end in zip((0, *ends), ends, strict=False):
            piece_BT = tokens_BT[:, begin:end]
            if observed:
                _, state, activity = model(piece_BT, state, return_states=True, return_activations=True)
                pieces.append(activity)
            else:
                _, state = model(piece_BT, state, return_states=True)
            assert state is not None, "return_states gives a state"
            states.append(state.detach())
    return Trace(ends, tuple(states), _join(pieces) if pieces else None)


def state_after(model: nn.Module, tokens_BT: Tensor, state: State | None = None) -> State:
    """The true state after all of ``tokens_BT``, detached."""
    return trace(model, tokens_BT, [tokens_BT.shape[1]], state=state, activations=False).states[0]


def _join(pieces: Sequence[Activations]) -> Activations:
    """Activations of consecutive pieces of one text, end to end."""
    layers = zip(*(piece.layers for piece in pieces), strict=True)
    return Activations(tuple(LayerActivations.merge(layer, _end_to_end) for layer in layers))


def _end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors), dim=1).detach()


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
