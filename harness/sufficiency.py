"""Is the returned state all that a model remembers? A round trip through it, beside states that must not do.

A model that returns something else than what it carries, such as a projection of its outputs, has the right shapes and
fails here: its text cannot be continued from that.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.evaluation import autocast
from harness.trace import observing
from kernels.parity import rms_error
from models.protocol import State, StatePath

SEEN = 1e-3
"""Relative change of the logits that a wrong state must cause, or the probe could not tell it from a right one."""


@dataclass(frozen=True)
class RoundTrip:
    """Text read on from a returned state, against one pass over all of it; relative RMS of the logits after ``cut``.

    error        with the state that the model returned
    zeroed       with a state of zeros in its place: what the state is worth
    proxy        with noise of its shapes and sizes in its place
    rounding     of the one pass in the dtype of the products against the same pass in fp32; 0 for fp32
    kinds        with one kind of tensor zeroed in all layers, by ``branch.kind``; at the last cut only
    """

    cut: int
    error: float
    zeroed: float
    proxy: float
    rounding: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The error as a share of what a wrong state causes, both beyond rounding: 0 for a true state, 1 for none."""
        return beyond_rounding(self.error, self.rounding) / self._wrong

    @property
    def sees(self) -> bool:
        """Whether both wrong states show."""
        return self._wrong > SEEN

    @property
    def _wrong(self) -> float:
        return beyond_rounding(min(self.zeroed, self.proxy), self.rounding)


def beyond_rounding(error: float, rounding: float) -> float:
    r"""What of a relative RMS between two passes is more than the rounding of both:  sqrt(max(0, e^2 - 2 r^2)).

    Two passes that cut a text in different places round in different places. Where each is off by ``rounding``,
    independently, they differ by sqrt(2) times that, whatever is handed from one to the next. NaN stays NaN.
    """
    beyond = error**2 - 2 * rounding**2
    # not max(0, beyond): that makes 0 of NaN
    return 0.0 if beyond <= 0 else math.sqrt(beyond)


def rounding_of(model: nn.Module, tokens_BT: Tensor, whole_BTV: Tensor, dtype: torch.dtype) -> Callable[[int], float]:
    """By position from which on: how far logits of a pass in ``dtype`` are from those of the same pass in fp32.

    Call it outside of autocast, with the model observed.
    """
    if dtype == torch.float32:
        return lambda begin: 0.0
    exact_BTV = model(tokens_BT)
    return lambda begin: rms_error(whole_BTV[:, begin:], exact_BTV[:, begin:])


def round_trips(
    model: nn.Module, tokens_BT: Tensor, cuts: Sequence[int], dtype: torch.dtype = torch.float32
) -> Iterator[RoundTrip]:
    """``model(x[:, s:], model(x[:, :s]).state)`` against ``model(x)``, at each cut s.

    ``dtype`` is that of the matrix products (autocast). The model must have the hook ``state``.
    """
    with observing(model):
        with autocast(tokens_BT.device, dtype):
            whole_BTV = model(tokens_BT)
        rounding = rounding_of(model, tokens_BT, whole_BTV, dtype)
    with observing(model), autocast(tokens_BT.device, dtype):
        for cut in cuts:
            _, state = model(tokens_BT[:, :cut], return_states=True)

            def error(carried: State, cut: int = cut) -> float:
                logits_BTV, _ = model(tokens_BT[:, cut:], carried, return_states=True)
                return rms_error(logits_BTV, whole_BTV[:, cut:])

            named = dict.fromkeys(f"{path.branch}.{path.kind}" for path, _ in state.items())
            kinds = named if cut == cuts[-1] else {}
            yield RoundTrip(
                cut,
                error(state),
                error(state.zeros()),
                error(noise_like(state)),
                rounding(cut),
                {kind: error(_without(state, kind)) for kind in kinds},
            )


def _without(state: State, kind: str) -> State:
    return state.replace(state.zeros(), lambda path: f"{path.branch}.{path.kind}" == kind)


def noise_like(state: State, seed: int = 0) -> State:
    """Gaussian noise with the shapes, dtypes and root mean squares of a state: what a proxy looks like from outside."""
    generator = torch.Generator().manual_seed(seed)

    def noise(_: StatePath, tensor: Tensor) -> Tensor:
        size = float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * size
        return drawn.to(tensor.device, tensor.dtype)

    return state.map(noise)


def wake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter that is all zero small values, in place, so that every part of a fresh model takes part.

    A fresh RWKV-6 writes exactly nothing, since its output matrix starts at zero: no fault of its state could show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model
