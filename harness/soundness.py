"""What G1 measures: whether a model computes what its contract says, forwards and backwards.

Every function takes a model that meets ``models.protocol`` and tokens ``[B,T]`` on its device. Errors are relative
root mean squares, ``rms(actual - expected) / rms(expected)``, unless the docstring says otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.parity import rms_error
from models.protocol import State


def token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token, computed in fp32."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def edit(tokens_BT: Tensor, position: int, vocab_size: int) -> Tensor:
    """The tokens with the one at ``position`` of every row replaced by another one."""
    edited = tokens_BT.clone()
    edited[:, position] = (edited[:, position] + 1) % vocab_size
    return edited


@dataclass(frozen=True)
class Influence:
    """What an edit changed: outputs that must not change, and outputs that must.

    leak   largest relative error over the outputs that had to stay as they were; exactly 0 for a sound model
    effect largest relative change where a change was due; 0 means that the probe saw nothing at all
    where  the worst place, in words
    """

    leak: float
    effect: float
    where: str


@torch.no_grad()
def causality(model: nn.Module, tokens_BT: Tensor, positions: Sequence[int], vocab_size: int) -> Influence:
    """Edit one token: the logits before it must not change, those from it on must."""
    logits_BTV = model(tokens_BT)
    leak, effect, where = 0.0, 0.0, "nowhere"
    for position in positions:
        edited_BTV = model(edit(tokens_BT, position, vocab_size))
        before = rms_error(edited_BTV[:, :position], logits_BTV[:, :position])
        effect = max(effect, rms_error(edited_BTV[:, position:], logits_BTV[:, position:]))
        if before > leak or before != before:
            leak, where = before, _first_change(edited_BTV, logits_BTV, position)
    return Influence(leak, effect, where)


def _first_change(edited_BTV: Tensor, logits_BTV: Tensor, position: int) -> str:
    changed = (edited_BTV != logits_BTV).any(-1).any(0).nonzero()
    return f"an edit of token {position} changes the logits from position {int(changed.min())} on"


@torch.no_grad()
def batch_independence(model: nn.Module, tokens_BT: Tensor, vocab_size: int) -> Influence:
    """Edit every other row: the logits of a row must not change, those of the edited rows must."""
    logits_BTV = model(tokens_BT)
    leak, effect, where = 0.0, 0.0, "nowhere"
    for row in range(len(tokens_BT)):
        others = torch.arange(len(tokens_BT), device=tokens_BT.device) != row
        edited_BT = torch.where(others[:, None], (tokens_BT + 1) % vocab_size, tokens_BT)
        edited_BTV = model(edited_BT)
        changed = rms_error(edited_BTV[row], logits_BTV[row])
        effect = max(effect, rms_error(edited_BTV[others], logits_BTV[others]))
        if changed > leak or changed != changed:
            leak, where = changed, f"row {row} of the batch depends on the other rows"
    return Influence(leak, effect, where)


@dataclass(frozen=True)
class CarryErrors:
    """A pass in two parts against one pass, at one cut."""

    cut: int
    logits: float
    state: Mapping[str, float]
    gradients: float

    @property
    def worst_state(self) -> tuple[str, float]:
        """The path of the state tensor that is furthest off, and its error."""
        return max(self.state.items(), key=lambda item: (item[1] != item[1], item[1]))


def split_and_carry(model: nn.Module, tokens_BT: Tensor, cuts: Sequence[int]) -> Iterator[CarryErrors]:
    """``model(x[:, :t])`` then ``model(x[:, t:], state)`` against ``model(x)``: logits, final state, gradients.

    The gradients are those of the mean log-likelihood of the tokens plus the mean square of the final state, taken
    over all parameters together, so that a gradient lost on its way through the carried state shows.
    """
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    whole_BTV, whole_state = model(inputs_BT, return_states=True)
    whole_grads = _gradients(model, whole_BTV, whole_state, targets_BT)
    for cut in cuts:
        head_BTV, carried = model(inputs_BT[:, :cut], return_states=True)
        tail_BTV, final = model(inputs_BT[:, cut:], carried, return_states=True)
        parts_BTV = torch.cat([head_BTV, tail_BTV], dim=1)
        yield CarryErrors(
            cut,
            rms_error(parts_BTV.detach(), whole_BTV.detach()),
            _state_errors(final, whole_state),
            rms_error(_gradients(model, parts_BTV, final, targets_BT), whole_grads),
        )


def _gradients(model: nn.Module, logits_BTV: Tensor, state: State, targets_BT: Tensor) -> Tensor:
    loss = token_loss(logits_BTV, targets_BT)
    for tensor in dict(state.items()).values():
        loss = loss + tensor.float().square().mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def _state_errors(actual: State, expected: State) -> dict[str, float]:
    wanted = dict(expected.items())
    found = dict(actual.items())
    if wanted.keys() != found.keys():
        return {"tree": float("nan")}
    return {
        str(path): rms_error(found[path].detach(), tensor.detach())
        if found[path].shape == tensor.shape
        else float("nan")
        for path, tensor in wanted.items()
    }


@torch.no_grad()
def reset(model: nn.Module, tokens_BT: Tensor) -> float:
    """A pass from ``init_state`` against a pass from no state: the relative error of the logits."""
    fresh_BTV = model(tokens_BT)
    injected_BTV, _ = model(tokens_BT, model.init_state(len(tokens_BT)), return_states=True)  # type: ignore[operator]
    return rms_error(injected_BTV, fresh_BTV)


@dataclass(frozen=True)
class GradientReach:
    """Which trainable tensors a gradient reached within a few optimiser steps."""

    never_reached: tuple[str, ...]
    non_finite: tuple[str, ...]
    num_tensors: int


def gradient_reach(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[Tensor, Tensor]]
) -> GradientReach:
    """Train on the batches and note for each tensor whether a non-zero, finite gradient ever reached it.

    One batch does not do: RWKV-6 starts with a zero output matrix, so its other tensors get their first gradient at
    step 1, and the factors of its low-rank maps at step 2 or 3.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    reached: set[str] = set()
    non_finite: dict[str, None] = {}
    for inputs_BT, targets_BT in batches:
        optimizer.zero_grad()
        torch.autograd.backward(token_loss(model(inputs_BT), targets_BT))
        for name, parameter in named:
            if parameter.grad is None:
                continue
            if not torch.isfinite(parameter.grad).all():
                non_finite[name] = None
            elif parameter.grad.any():
                reached.add(name)
        optimizer.step()
    never = tuple(name for name, _ in named if name not in reached and name not in non_finite)
    return GradientReach(never, tuple(non_finite), len(named))


def nominal_size(scale: str) -> int:
    """Parameters that a scale's name promises: ``3.5M`` is 3,500,000."""
    return round(float(scale.removesuffix("M")) * 1e6)


def count_parameters(model: nn.Module) -> int:
    """Total parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
