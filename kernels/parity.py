"""Parity with the fp64 oracle: one metric and one procedure, for the project's tests and for gate G0."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from kernels import api, backends
from kernels.walks import (
    VALUES,
    Operation,
    Run,
    cast,
    exact_walks,
    loss_weights,
    naive_walks,
    require_shape,
    values_dtype,
)

LENGTHS = (1, 2, 63, 64, 65, 127, 128, 257, 1000)
# What the decays of a case are like: keep_all is exactly 1, forget_all exactly 0.
DECAYS = ("typical", "keep_all", "forget_all", "strong", "near_one", "mixed")
OPS_WITH_DECAYS = ("wkv6", "ssd")
# They carry a state from call to call and return ``y, final_state``; the others return ``y`` alone.
OPS_WITH_STATE = ("wkv6", "ssd", "causal_conv1d", "selective_scan")
# At the longest length, where the oracle takes most of its time, two kinds stand for all.
DECAYS_AT_THE_LONGEST = ("typical", "near_one")
NARROW = (torch.bfloat16, torch.float16)

Name = TypeVar("Name")


def rms_error(actual: Tensor, expected: Tensor) -> float:
    r"""RMS of the error relative to RMS of the expected values, computed in fp64.

        error = sqrt(sum (actual - expected)^2 / sum expected^2)

    Unit    1. NaN when either side holds NaN or infinities. Where everything expected is 0: 0 if so is everything
            actual, else inf.
    Raises  ``ValueError`` when the shapes differ.

    >>> rms_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    return rms_errors({"": actual}, {"": expected})[""]


def rms_errors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """``rms_error`` of everything expected, by name, on its device: a GPU is waited for once and not once a number."""
    norms = torch.stack([norm for name, tensor in expected.items() for norm in _norms(actual[name], tensor)]).tolist()
    return {name: _relative(*norms[2 * i : 2 * i + 2]) for i, name in enumerate(expected)}


def _norms(actual: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Norms in fp64 of the difference and of what was expected."""
    require_shape(actual, expected.shape)
    wanted = expected.detach().double()
    return (actual.detach().to(wanted) - wanted).norm(), wanted.norm()


def _relative(difference: float, scale: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(scale):
        return math.nan
    if scale == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / scale


def worst(errors: Mapping[Name, float]) -> tuple[Name, float]:
    """Name and value of the largest error; NaN counts as larger than any number."""
    return max(errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


@dataclass(frozen=True)
class Oracle:
    """What the fp64 oracle of an operation makes of some inputs: the truth that implementations are held against.

    It gets the inputs as they are, already rounded, and runs on their device. The loss weights ``y`` and the final
    state with fixed random numbers, so both send gradients; the numbers are rounded to the dtype of the values, so that
    every implementation gets the same ones.

    weights   these numbers, by name of the output
    expected  by name: ``y``, ``final_state`` where there is one, and ``grad <input>`` for every input that is not an
              integer
    """

    op: str
    inputs: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]

    def errors(self, function: Operation) -> dict[str, float]:
        """Errors of ``function``, which takes the inputs by name, as the public operation does.

        Returns ``rms_error`` by the names of ``expected``. The gradient of an input that ``function`` never uses counts
        as zero. Raises ``ValueError`` when an output has another shape than the oracle's.
        """
        run = Run(function, self.inputs)
        return rms_errors({**run.outputs, **run.gradients(self.weights)}, self.expected)


def oracles(op: str, cases: Sequence[Mapping[str, Tensor]]) -> list[Oracle]:
    """The oracle of each case, all of one shape: in one walk where the operation allows (``walks.SIDE_BY_SIDE``)."""
    found = zip(cases, exact_walks(op, cases), strict=True)
    return [Oracle(op, inputs, walk.weights, walk.found) for inputs, walk in found]


def naive_errors(cases: Sequence[Oracle]) -> list[dict[str, float]]:
    """Errors of the reference computed wholly in the dtype of the values: what rounding alone may cost.

    The cases share their operation, this dtype and their shape, and walk together as in ``oracles``.
    """
    [op] = {case.op for case in cases}
    found = zip(cases, naive_walks(op, [case.inputs for case in cases]), strict=True)
    return [rms_errors(walk.found, case.expected) for case, walk in found]


def errors_of(function: Operation, op: str, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Errors of ``function`` against the fp64 oracle of ``op``: see ``Oracle.errors``."""
    [oracle] = oracles(op, [inputs])
    return oracle.errors(function)


def compare(op: str, backend: str, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """``errors_of`` the public operation ``op`` on one backend.

    Raises ``BackendError`` when the backend does not exist or does not run on the device of the inputs.
    """
    with backends.force(op, backend):
        return errors_of(getattr(api, op), op, inputs)


def carry_errors(op: str, backend: str, inputs: Mapping[str, Tensor], cuts: Sequence[int]) -> dict[str, float]:
    """One pass against the same positions in parts, cut before each position of ``cuts``, the state handed on.

    Both run on the backend. Returns ``rms_error`` by name, as ``Oracle.errors`` does. Raises ``BackendError``.
    """
    function = getattr(api, op)
    with backends.force(op, backend):
        whole = Run(function, inputs)
        weights = loss_weights(whole.outputs, values_dtype(op, inputs))
        parts = Run(_in_parts(function, cuts), inputs)
        found = {**parts.outputs, **parts.gradients(weights)}
        return rms_errors(found, {**whole.outputs, **whole.gradients(weights)})


def _in_parts(function: Operation, cuts: Sequence[int]) -> Operation:
    def run(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        sequences = [name for name in inputs if name.rpartition("_")[2].startswith("BT")]
        [state] = [name for name in inputs if name.startswith("initial_state_")]
        length = inputs[sequences[0]].shape[1]
        ys = []
        for begin, end in pairwise((0, *cuts, length)):
            y, inputs[state] = function(**{**inputs, **{name: inputs[name][:, begin:end] for name in sequences}})
            ys.append(y)
        return torch.cat(ys, dim=1), inputs[state]

    return run


@dataclass(frozen=True)
class ParityCase:
    """One point of the comparison: an operation, a number of positions and a kind of decay.

    coarse  the decay of wkv6 comes in the dtype of the values, however narrow that is
    """

    op: str
    length: int
    decays: str = "typical"
    coarse: bool = False

    def __str__(self) -> str:
        return f"{self.op}-T{self.length}-{self.decays}{'-coarse' if self.coarse else ''}"

    def inputs(
        self,
        head_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        state_size: int | None = None,
    ) -> dict[str, Tensor]:
        """Random inputs by name, with a non-zero initial state: 2 rows, 2 heads (ssd: 8), sizes of ``head_size``.

        dtype       of the values; the other inputs too, unless it is narrower than fp32, which they then have
        state_size  N of ssd, where it is not ``head_size``

        ``length`` counts positions, and for the cross entropy predictions.
        """
        generator = torch.Generator().manual_seed(self.length)
        sizes = (head_size, state_size or head_size) if self.op == "ssd" else (head_size,)
        made = _MAKERS[self.op](generator, self.length, self.decays, *sizes)
        narrow = {*VALUES[self.op], *(["log_w_BTHK"] if self.coarse else [])}
        other = torch.float32 if dtype in NARROW else dtype
        return {name: cast(t, dtype if name in narrow else other).to(device) for name, t in made.items()}


def parity_cases(*ops: str) -> Iterator[ParityCase]:
    """Every length with every kind of decay, for the named operations or for all.

    The longest length has ``DECAYS_AT_THE_LONGEST`` only: the oracle walks its positions one by one, and the extreme
    decays leave nothing to accumulate that the shorter lengths do not show.
    """
    for op in ops or backends.OPS:
        for length in LENGTHS:
            kinds = DECAYS_AT_THE_LONGEST if length == max(LENGTHS) else DECAYS
            for decays in kinds if op in OPS_WITH_DECAYS else DECAYS[:1]:
                yield ParityCase(op, length, decays)


def _wkv6_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    shape = (2, T, 2, size)
    r, k, v, noise = (torch.randn(shape, generator=generator) for _ in range(4))
    uniform = torch.rand(shape, generator=generator)
    log_w = {
        "typical": -torch.exp(noise - 2),
        "keep_all": torch.zeros(shape),
        "forget_all": torch.full(shape, -math.inf),
        "strong": -5 - 55 * uniform,
        "near_one": torch.full(shape, math.log1p(-1e-6)),
        "mixed": torch.where(uniform < 0.1, -math.inf, torch.where(uniform > 0.8, 0.0, -torch.exp(3 * noise - 2))),
    }[decays]
    u = torch.randn(2, size, generator=generator)
    state = torch.randn(2, 2, size, size, generator=generator)
    return {"r_BTHK": r, "k_BTHK": k, "v_BTHV": v, "log_w_BTHK": log_w, "u_HK": u, "initial_state_BHKV": state}


_SSD_HEADS = 8


def _ssd_inputs(generator: torch.Generator, T: int, decays: str, P: int, N: int) -> dict[str, Tensor]:
    # The gradient of A is one number a head, a sum of terms of either sign: that of two heads may be nearly zero beside
    # its terms, and its relative error then says nothing (seen at T = 127: .86, where 400 was usual)
    x = torch.randn(2, T, _SSD_HEADS, P, generator=generator)
    dt = torch.rand(2, T, _SSD_HEADS, generator=generator) * 0.1 + 0.01
    first, last = {
        "typical": (-1.0, -16.0),
        "keep_all": (0.0, 0.0),
        # exp(dt A) is 0 in fp64 too
        "forget_all": (-1e6, -1e6),
        "strong": (-400.0, -500.0),
        "near_one": (-1e-5, -1e-5),
        "mixed": (-1e-4, -1e6),
    }[decays]
    B, C = (torch.randn(2, T, 1, N, generator=generator) for _ in range(2))
    state = torch.randn(2, _SSD_HEADS, P, N, generator=generator)
    if decays == "mixed":
        A = torch.tensor([first, last]).repeat(_SSD_HEADS // 2)
    else:  # closer together where decays are slow and gradients large
        A = first + (last - first) * torch.linspace(0, 1, _SSD_HEADS) ** 3
    return {"x_BTHP": x, "dt_BTH": dt, "A_H": A, "B_BTGN": B, "C_BTGN": C, "initial_state_BHPN": state}


def _conv1d_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    channels, width = 2 * size, 4
    return {
        "x_BTC": torch.randn(2, T, channels, generator=generator),
        "weight_Cw": torch.randn(channels, width, generator=generator),
        "bias_C": torch.randn(channels, generator=generator),
        "initial_state_BCw": torch.randn(2, channels, width - 1, generator=generator),
    }


def _selective_scan_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    channels, N = 2 * size, 16
    return {
        "u_BTC": torch.randn(2, T, channels, generator=generator),
        "delta_BTC": torch.rand(2, T, channels, generator=generator) * 0.1,
        "A_CN": -torch.rand(channels, N, generator=generator) * 16,
        "B_BTN": torch.randn(2, T, N, generator=generator),
        "C_BTN": torch.randn(2, T, N, generator=generator),
        "D_C": torch.randn(channels, generator=generator),
        "initial_state_BCN": torch.randn(2, channels, N, generator=generator),
    }


def _cross_entropy_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    classes = 16 * size + 3
    # some predictions are sure, some hopeless
    logits = torch.randn(T, classes, generator=generator) * torch.logspace(-1, 1.5, T)[:, None]
    return {"logits_NV": logits, "targets_N": torch.randint(classes, (T,), generator=generator)}


def _rms_norm_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    # rows from far below eps to far above
    scale = torch.logspace(-4, 4, T)[None, :, None]
    x = torch.randn(2, T, 2 * size, generator=generator) * scale
    return {"x_BTD": x, "weight_D": torch.randn(2 * size, generator=generator)}


def _gated_rms_norm_inputs(generator: torch.Generator, T: int, decays: str, size: int) -> dict[str, Tensor]:
    x, z = (torch.randn(2, T, 2 * size, generator=generator) for _ in range(2))
    return {"x_BTD": x, "z_BTD": 3 * z, "weight_D": torch.randn(2 * size, generator=generator)}


_MAKERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "wkv6": _wkv6_inputs,
    "ssd": _ssd_inputs,
    "causal_conv1d": _conv1d_inputs,
    "selective_scan": _selective_scan_inputs,
    "cross_entropy": _cross_entropy_inputs,
    "rms_norm": _rms_norm_inputs,
    "gated_rms_norm": _gated_rms_norm_inputs,
}
