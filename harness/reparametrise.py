"""The same function with a state of another scale: the control that tells a measure of contribution from a scale."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

STATE_FACTOR = 1024.0
"""A power of two: multiplying by it and by its inverse rounds nothing, so the function stays the same bit by bit."""


def key_readers(model: nn.Module) -> list[nn.Module]:
    """Mixers whose state is linear in a projection ``key`` and read by a projection ``receptance`` (RWKV-6)."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "key", None), nn.Linear)
        and isinstance(getattr(module, "receptance", None), nn.Linear)
        and hasattr(module, "bonus")
    ]


def enlarge_state(model: nn.Module, factor: float = STATE_FACTOR) -> ExitStack:
    """Multiply the matrix state of every RWKV-6 mixer by ``factor`` and leave all it computes as it is.

        k -> factor k,   r -> r / factor      so  S -> factor S  and  y = r (S + diag(bonus) k^T v)  stays

    Done by hooks on the projections, so weights and gradients of weights stay as they are, too. GroupNorm sees the
    same input as before: no eps comes into it. Closing the stack takes the hooks away.
    """
    hooks = ExitStack()
    for mixer in key_readers(model):
        for name, scale in (("key", factor), ("receptance", 1 / factor)):
            handle = mixer.get_submodule(name).register_forward_hook(partial(_scaled, scale))
            hooks.callback(handle.remove)
    return hooks


def _scaled(scale: float, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return scale * output


@contextmanager
def enlarged_state(model: nn.Module, factor: float = STATE_FACTOR) -> Iterator[None]:
    """``enlarge_state`` for the length of a block."""
    with enlarge_state(model, factor):
        yield
