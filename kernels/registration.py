"""What autograd and tracing must know of an operation that is written in another language."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., Any]


def register(op: str, fake: Rule, gradients: Rule, save: Rule, fake_gradients: Rule) -> None:
    """Complete ``groundthink::<op>`` and ``groundthink::<op>_backward``, whose kernels a loaded library brings.

    fake, fake_gradients    outputs without values, for tracing
    save, gradients         as ``torch.library.register_autograd`` takes them
    """
    torch.library.register_fake(f"groundthink::{op}", fake)
    torch.library.register_autograd(f"groundthink::{op}", gradients, setup_context=save)
    torch.library.register_fake(f"groundthink::{op}_backward", fake_gradients)
    torch.library.register_autograd(f"groundthink::{op}_backward", _no_second_derivative)


def contiguous_like(tensor: Tensor) -> Tensor:
    """Memory for a result of a tensor's shape and dtype."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError(
        "the C++ and CUDA kernels have no second derivative; compute it with kernels.backends.force(op, 'reference')"
    )
