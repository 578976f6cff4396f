"""AdamW with one learning rate a branch, and the warm-up, stable, decay schedule."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from harness.config import TrainConfig
from harness.errors import HarnessError


class OptimError(HarnessError):
    """The model's parameters cannot be grouped. The message names the parameter."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """The base learning rate of update ``step`` (0-based): warm-up, stable, decay (arXiv:2404.06395, section 4).

    Before the decay it does not depend on ``config.steps``: there a longer run is the same run as a shorter one.
    Raises ValueError outside ``0 .. steps - 1``.
    """
    if not 0 <= step < config.steps:
        raise ValueError(f"step {step} is outside 0 .. {config.steps - 1}")
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    remaining = config.steps - 1 - step
    if remaining >= config.decay_steps:
        return config.lr
    # the last step has min_lr_ratio, the first of the decay is already one notch down
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining / config.decay_steps)


def branch_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """The trainable mixer parameters of each branch by name; empty for a model without ``branch_modules``.

    Raises ``OptimError`` when two branches share a parameter, or a branch has one that the model does not list.
    """
    if not hasattr(model, "branch_modules"):
        return {}
    modules: Mapping[str, Sequence[nn.Module]] = cast(Any, model).branch_modules()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owner: dict[int, str] = {}
    result: dict[str, dict[str, nn.Parameter]] = {}
    for branch, members in modules.items():
        result[branch] = {}
        for parameter in (p for module in members for p in module.parameters() if p.requires_grad):
            if id(parameter) not in names:
                raise OptimError(f"branch_modules()[{branch!r}] has a parameter that model.named_parameters() lacks")
            name = names[id(parameter)]
            if owner.setdefault(id(parameter), branch) != branch:
                raise OptimError(
                    f"{name} belongs to the branches {owner[id(parameter)]} and {branch}: their gradients cannot be "
                    f"told apart. Let branch_modules() list it once"
                )
            result[branch][name] = parameter
    return result


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups; every trainable parameter in exactly one, each group with ``lr_mult`` and ``name``.

    Weight decay shrinks matrices that multiply activations, and nothing else: not 1-D tensors (norms, biases,
    decays), not what the model marks ``_no_weight_decay``, and not embeddings. A tied head is an embedding: rows of
    rare tokens see no gradient for many steps and would only shrink.
    """
    branches = {id(p): branch for branch, members in branch_parameters(model).items() for p in members.values()}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    multipliers = {"mamba": config.mamba_lr_mult, "rwkv": config.rwkv_lr_mult}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        branch = branches.get(id(parameter), "other")
        decays = (
            parameter.ndim > 1
            and id(parameter) not in embeddings
            and not name.endswith("bias")
            and not getattr(parameter, "_no_weight_decay", False)
        )
        group = groups.setdefault(
            f"{branch}.{'decay' if decays else 'no_decay'}",
            {"params": [], "weight_decay": config.weight_decay if decays else 0.0},
        )
        group["lr_mult"] = multipliers.get(branch, 1.0)
        group["params"].append(parameter)
    result = [{"name": name, **groups[name]} for name in sorted(groups)]
    grouped = [id(p) for group in result for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    return result


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimizer of a training, for the model where it is. Raises ``OptimError`` when nothing is trainable."""
    groups = parameter_groups(model, config)
    if not groups:
        raise OptimError("the model has no trainable parameter")
    on_gpu = bool(groups[0]["params"][0].is_cuda)
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True, capturable=on_gpu
    )
    if on_gpu:
        # a CUDA graph keeps where it read a number, not the number
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(config.lr, device=group["params"][0].device)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the base rate times its multiplier."""
    for group in optimizer.param_groups:
        rate = lr * group["lr_mult"]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def named_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The optimizer's state of each parameter, by the parameter's name; empty before the first update."""
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            yield name, optimizer.state[parameter]
