"""The layers of a stack for training steps: fused by torch.compile, their weights rounded all at once.

Nothing here is a second definition of a model: what is compiled is the layers' own ``forward``, around kernels that
stay opaque to the compiler. Who wants states, activations or hooks calls the model itself.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kernels import backends
from models.blocks.parameters import matmul_weights
from models.stack import LayerOutput

# Same bits in every process: nothing that sums is chosen by a stopwatch. CUDA graphs are the caller's.
_INDUCTOR = {"deterministic": True, "triton.cudagraphs": False}

# One compiled graph serves all layers alike, of all models of one shape. A process may train many shapes.
_SHAPES = 1000


class FusedLayers:
    """``x_BTD`` through all layers, without states; to be called under autocast or not, with gradients."""

    def __init__(self, layers: Sequence[nn.Module], compiler: str) -> None:
        self.layers = list(layers)
        self.weights = [_trainable(matmul_weights(layer)) for layer in self.layers]
        backends.prepare(next(self.layers[0].parameters()).device.type)
        options: dict[str, Any] = {"options": _INDUCTOR} if compiler == "inductor" else {}
        self.apply = torch.compile(_output, fullgraph=True, dynamic=False, backend=compiler, **options)

    def __call__(self, x_BTD: Tensor) -> Tensor:
        """The output of the last layer ``[B,T,D]``."""
        limits = torch._dynamo.config.patch(recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES)
        with limits, warnings.catch_warnings():
            # the compiler warns of what it touches itself (gradients of tensors that have none) and of exact fp32
            warnings.simplefilter("ignore")
            if torch.is_grad_enabled() and not x_BTD.requires_grad:
                # embeddings may be held: the first layer is no other graph for that
                x_BTD = x_BTD.detach().requires_grad_()
            for layer, weights in zip(self.layers, self._rounded(x_BTD.device.type), strict=True):
                x_BTD = self.apply(layer, weights, x_BTD)
        return x_BTD

    def _rounded(self, device_type: str) -> list[dict[str, Tensor]]:
        """By layer, the weights of matrix products as autocast would round them, but in one go; else none."""
        if not torch.is_autocast_enabled(device_type):
            return [{} for _ in self.layers]
        flat = [weight for weights in self.weights for weight in weights.values()]
        rounded = iter(_RoundTogether.apply(torch.get_autocast_dtype(device_type), *flat))  # type: ignore[no-untyped-call]
        return [{name: next(rounded) for name in weights} for weights in self.weights]


def _output(layer: nn.Module, weights: Mapping[str, Tensor], x_BTD: Tensor) -> Tensor:
    """What a layer makes of ``x_BTD`` with some of its weights replaced."""
    output: LayerOutput = functional_call(layer, dict(weights), (x_BTD, None, False), {"keep_state": False})
    return output.x


def _trainable(weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: w for name, w in weights.items() if w.requires_grad and w.dtype == torch.float32}


class _RoundTogether(torch.autograd.Function):
    """Copies of tensors in another dtype, by a few kernels instead of one a tensor, in both directions."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(_converted(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_converted(grads, torch.float32)


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return copies
