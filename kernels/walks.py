"""Operations run for their outputs and gradients, and the reference run for several cases in one walk.

On a GPU a walk over positions takes the time of its launches, whose number has nothing to do with how many heads there
are. So cases of one shape lie side by side, as the heads (the channels) of one call, where every tensor of an operation
has a place for that. Heads never meet, parameters and their gradients neither: each case comes out as it would by
itself, but for the order in which a device sums.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import api, backends, reference

# Inputs whose dtype a backend may take as it is. Parameters, steps and states are never narrower than fp32, and neither
# is the decay of wkv6 unless a case says so.
VALUES = {
    "wkv6": ("r_BTHK", "k_BTHK", "v_BTHV"),
    "ssd": ("x_BTHP", "B_BTGN", "C_BTGN"),
    "causal_conv1d": ("x_BTC",),
    "selective_scan": ("u_BTC", "B_BTN", "C_BTN"),
    "cross_entropy": ("logits_NV",),
    "rms_norm": ("x_BTD",),
    "gated_rms_norm": ("x_BTD", "z_BTD"),
}
# The axes along which cases lie side by side, by letter: every input has one of them. Other operations have none, and
# walk once a case.
SIDE_BY_SIDE = {"wkv6": "H", "ssd": "HG", "causal_conv1d": "C"}

Operation = Callable[..., Tensor | tuple[Tensor, Tensor]]
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Walk:
    """What the reference makes of one case.

    weights  of its outputs in the loss, by name: see ``loss_weights``
    found    by name: ``y``, ``final_state`` where there is one, and ``grad <input>`` for every input that has one
    """

    weights: Inputs
    found: Inputs


class Run:
    """One call of an operation with inputs by name, and then, once, its gradients.

    outputs  ``y``, and ``final_state`` where there is one
    """

    def __init__(self, function: Operation, inputs: Inputs) -> None:
        given = {
            name: tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()
        }
        self._leaves = {name: tensor for name, tensor in given.items() if tensor.requires_grad}
        results = function(**given)
        self._results = (
            {"y": results} if isinstance(results, Tensor) else dict(zip(("y", "final_state"), results, strict=True))
        )
        self.outputs = {name: result.detach() for name, result in self._results.items()}

    def gradients(self, weights: Inputs) -> dict[str, Tensor]:
        """``grad <input>`` for every input that is not an integer, of the outputs in a loss that weights them.

        The gradient of an input that the operation never used is zero. Raises ``ValueError`` when an output has not
        the shape of its weights.
        """
        for name, result in self._results.items():
            require_shape(result, weights[name].shape)
        gradients = torch.autograd.grad(
            list(self._results.values()),
            list(self._leaves.values()),
            [weights[name].to(result) for name, result in self._results.items()],
            allow_unused=True,
            materialize_grads=True,
        )
        return {f"grad {name}": gradient for name, gradient in zip(self._leaves, gradients, strict=True)}


def require_shape(actual: Tensor, expected: torch.Size) -> None:
    """Raises ``ValueError`` when a tensor has another shape than the expected."""
    if actual.shape != expected:
        raise ValueError(f"cannot compare shape {list(actual.shape)} with the expected {list(expected)}")


def loss_weights(outputs: Inputs, values: torch.dtype) -> dict[str, Tensor]:
    """Fixed random numbers for each output, rounded to the dtype of the values, so that every implementation gets them.

    They are drawn on the CPU: every device sees the same loss.
    """
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(output.shape, generator=generator).to(values).to(output.device)
        for name, output in outputs.items()
    }


def values_dtype(op: str, inputs: Inputs) -> torch.dtype:
    """The dtype of the values of a case."""
    return inputs[VALUES[op][0]].dtype


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype; integers stay integers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def exact_walks(op: str, cases: Sequence[Inputs]) -> list[Walk]:
    """The public operation on the reference in fp64, on the inputs as they are, already rounded."""

    def run(**inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        with backends.force(op, backends.REFERENCE):
            result: Tensor | tuple[Tensor, Tensor] = getattr(api, op)(**inputs)
        return result

    return _walks(op, run, cases, torch.float64)


def naive_walks(op: str, cases: Sequence[Inputs]) -> list[Walk]:
    """The reference wholly in the dtype of the values, which all cases must share: the public operation has no such."""
    [dtype] = {values_dtype(op, inputs) for inputs in cases}
    function = getattr(reference, f"{op}_reference")
    options = [p.default for p in inspect.signature(getattr(api, op)).parameters.values() if p.default is not p.empty]

    def run(**inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # None stands for a state, which is among the inputs
        result: Tensor | tuple[Tensor, Tensor] = function(*inputs.values(), *(o for o in options if o is not None))
        return result

    return _walks(op, run, cases, dtype)


def _walks(op: str, function: Operation, cases: Sequence[Inputs], dtype: torch.dtype) -> list[Walk]:
    """Each case, computed in ``dtype``; the weights are rounded to the dtype of its own values all the same."""
    given = [{name: cast(tensor.detach(), dtype) for name, tensor in inputs.items()} for inputs in cases]
    values = [values_dtype(op, inputs) for inputs in cases]
    if op in SIDE_BY_SIDE:
        return _together(function, given, values, _axes(op, given[0]))
    return [walk for i in range(len(cases)) for walk in _together(function, given[i : i + 1], values[i : i + 1], {})]


def _together(
    function: Operation, cases: Sequence[Inputs], values: Sequence[torch.dtype], axes: Mapping[str, int]
) -> list[Walk]:
    run = Run(function, _beside(cases, axes))
    outputs = _apart(run.outputs, len(cases), axes)
    weights = [loss_weights(own, dtype) for own, dtype in zip(outputs, values, strict=True)]
    gradients = _apart(run.gradients(_beside(weights, axes)), len(cases), axes)
    return [
        Walk(*parts) for parts in zip(weights, [o | g for o, g in zip(outputs, gradients, strict=True)], strict=True)
    ]


def _axes(op: str, inputs: Inputs) -> dict[str, int]:
    """Where cases lie side by side: in inputs, outputs and gradients, by name."""
    axes = {}
    for name in inputs:
        [axes[name]] = [i for i, letter in enumerate(name.rpartition("_")[2]) if letter in SIDE_BY_SIDE[op]]
    [state] = [name for name in inputs if name.startswith("initial_state_")]
    outputs = {"y": axes[VALUES[op][0]], "final_state": axes[state]}
    return {**axes, **outputs, **{f"grad {name}": axis for name, axis in axes.items()}}


def _beside(cases: Sequence[Inputs], axes: Mapping[str, int]) -> Inputs:
    if len(cases) == 1:
        return cases[0]
    first = cases[0]
    assert all(case[name].shape == first[name].shape for case in cases for name in first), "cases must have one shape"
    return {name: torch.cat([case[name] for case in cases], dim=axes[name]) for name in first}


def _apart(tensors: Inputs, num_cases: int, axes: Mapping[str, int]) -> list[dict[str, Tensor]]:
    if num_cases == 1:
        return [dict(tensors)]
    parts = {name: tensor.chunk(num_cases, dim=axes[name]) for name, tensor in tensors.items()}
    # laid out as a case alone, for norms that sum in the order of memory
    return [{name: part[i].contiguous() for name, part in parts.items()} for i in range(num_cases)]
