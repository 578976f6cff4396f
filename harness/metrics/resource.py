"""What a training takes, predicted from smaller sizes: peak memory and tokens a second.

    memory      M = c0 + weights, gradients and moments + states + c2 S
    step time   t = t0 + t1 K + t2 S + n F / R

S bytes that autograd keeps of one batch, K operations launched in a forward pass, n tokens a step, F operations a
token. These, and the bytes of weights, gradients, moments and states, are counted. Only coefficients are fitted, by
least squares of relative errors, and none can be negative: a cost that falls with size is noise. S stands for B T D L
of the textbooks: a user's model need not say what its width is, and depth and width do not share one constant. It is
also what a step moves through memory. The loss and its logits, B T V, are the same at every size of one ladder, so they
are in c0, with the libraries' buffers. A small model waits for launches, a larger one for memory or products: which,
the fit finds.

All sizes must share device, batch, length, vocabulary and dtype, and so must what is predicted. The interval is that of
the errors made when each size is predicted from the others.

Source  bytes of weights, gradients and Adam: Rajbhandari et al., arXiv:1910.02054, section 3.1; activations linear in
B T D L: Korthikanti et al., arXiv:2205.05198, section 4; operations over a sustained rate: Chowdhery et al.,
arXiv:2204.02311, appendix B.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.metrics.intervals import LEVEL

MIN_SIZES = 4
"""As many as there are coefficients of a step's time; three of a memory's two would hardly show an error."""


class ResourceError(HarnessError):
    """A prediction of resources cannot be made. The message says why."""


@dataclass(frozen=True)
class Size:
    """What can be counted of a training without timing it.

    fixed_bytes      weights, buffers, gradients and Adam's moments
    state_bytes      the recurrent state of one batch
    saved_bytes      what autograd keeps of a forward pass of one micro-batch, weights apart
    launches         operations that a forward pass of one micro-batch asks of the device
    flops_per_token  forward and backward
    tokens           of one step
    """

    parameters: int
    fixed_bytes: int
    state_bytes: int
    saved_bytes: int
    launches: int
    flops_per_token: float
    tokens: int


@dataclass(frozen=True)
class Forecast:
    """A prediction with its 90 % interval. coefficients, by the name of their term, are for the reader."""

    value: float
    low: float
    high: float
    coefficients: Mapping[str, float]


def predict_memory(sizes: Sequence[Size], peak_bytes: Sequence[float], target: Size) -> Forecast:
    """Peak bytes of a training of ``target``. Raises ``ResourceError`` for fewer than ``MIN_SIZES`` sizes."""
    terms = {"bytes": _ones, "bytes a byte that autograd keeps": _saved}
    return _predict(sizes, peak_bytes, target, terms, lambda size: size.fixed_bytes + size.state_bytes)


def predict_speed(sizes: Sequence[Size], tokens_per_s: Sequence[float], target: Size) -> Forecast:
    """Tokens a second of a training of ``target``. Raises ``ResourceError`` for fewer than ``MIN_SIZES`` sizes."""
    terms = {"s": _ones, "s a launch": _launches, "s a byte that autograd keeps": _saved, "s an operation": _flops}
    step_s = [size.tokens / speed for size, speed in zip(sizes, tokens_per_s, strict=True)]
    step = _predict(sizes, step_s, target, terms, lambda _: 0.0)
    tokens = target.tokens
    return Forecast(tokens / step.value, tokens / step.high, tokens / step.low, step.coefficients)


def prediction_error(memory: float, predicted_memory: float, speed: float, predicted_speed: float) -> float:
    """The larger of the two log ratios of measured and predicted, whatever their signs; .18 is 20 %."""
    return max(abs(math.log(memory / predicted_memory)), abs(math.log(speed / predicted_speed)))


_Term = Callable[[Size], float]


def _ones(_: Size) -> float:
    return 1.0


def _saved(size: Size) -> float:
    return float(size.saved_bytes)


def _launches(size: Size) -> float:
    return float(size.launches)


def _flops(size: Size) -> float:
    return size.flops_per_token * size.tokens


def _predict(
    sizes: Sequence[Size], measured: Sequence[float], target: Size, terms: Mapping[str, _Term], known: _Term
) -> Forecast:
    assert len(sizes) == len(measured)
    if len(sizes) < MIN_SIZES:
        raise ResourceError(f"{len(sizes)} sizes cannot say how a cost grows; at least {MIN_SIZES} are needed")
    coefficients = _fit(sizes, measured, terms, known)
    value = _cost(coefficients, target, terms, known)
    misses = []
    for left_out in range(len(sizes)):
        rest = [index for index in range(len(sizes)) if index != left_out]
        others = _fit([sizes[i] for i in rest], [measured[i] for i in rest], terms, known)
        misses.append(math.log(measured[left_out] / _cost(others, sizes[left_out], terms, known)))
    spread = math.sqrt(sum(miss**2 for miss in misses) / len(misses))
    reach = math.exp(_student_t(len(misses)) * spread)
    return Forecast(value, value / reach, value * reach, dict(zip(terms, coefficients, strict=True)))


def _fit(sizes: Sequence[Size], measured: Sequence[float], terms: Mapping[str, _Term], known: _Term) -> list[float]:
    """Coefficients of the terms, none negative, by least squares of relative errors; what is known is taken off."""
    import numpy as np
    from scipy.optimize import nnls

    total = np.array(measured, dtype=np.float64)
    design = np.array([[term(size) for term in terms.values()] for size in sizes], dtype=np.float64)
    unit = np.maximum(design.max(axis=0), np.finfo(np.float64).tiny)
    fitted, _ = nnls(design / unit / total[:, None], (total - [known(size) for size in sizes]) / total)
    return [float(value) for value in fitted / unit]


def _cost(coefficients: Sequence[float], size: Size, terms: Mapping[str, _Term], known: _Term) -> float:
    return known(size) + sum(c * term(size) for c, term in zip(coefficients, terms.values(), strict=True))


def _student_t(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))
