"""Marks of parameters."""

import torch
from torch import Tensor, nn


def undecayed(tensor: Tensor) -> nn.Parameter:
    """A parameter that weight decay must leave alone, whatever its shape."""
    return mark_undecayed(nn.Parameter(tensor))


def mark_undecayed(parameter: nn.Parameter) -> nn.Parameter:
    """Mark an existing parameter in the same way and return it."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def matmul_only(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter that enters matrix products and nothing else: lower precision may round it ahead of them."""
    parameter._matmul_only = True  # type: ignore[attr-defined]
    return parameter


def matmul_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that are marked so, and those of its linear layers, by name."""
    linear = {id(p) for part in module.modules() if isinstance(part, nn.Linear) for p in part.parameters()}
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if id(parameter) in linear or getattr(parameter, "_matmul_only", False)
    }


def undecayed_norm(norm: nn.Module) -> nn.Module:
    """A normalisation layer whose gains and biases are all marked."""
    for parameter in norm.parameters():
        mark_undecayed(parameter)
    return norm


def start_bias_at_zero(linear: nn.Linear) -> None:
    """Zero the bias of a linear layer that has one, and mark it."""
    if linear.bias is not None:
        nn.init.zeros_(mark_undecayed(linear.bias))


def state_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of long states beside a parameter: fp32, or fp64 in a double-precision model; never less."""
    return torch.promote_types(parameter.dtype, torch.float32)
