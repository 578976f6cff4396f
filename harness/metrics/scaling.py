"""How the loss falls with size and data: L(N, D) = E + A N^-a + B D^-b, and what it predicts for a size never fitted.

A good fit is no evidence: random losses that only fall give R^2 > .95 in a third of all cases. What counts is the
prediction of a run that had no part in the fit, and that it beats predictions that need no law. fp64, no torch.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.metrics.intervals import LEVEL, Interval
from harness.metrics.trend import UnderpoweredError

FloatArray = NDArray[np.float64]

# Of ln L: runs that lie further off than 1 % count by their distance, no longer by its square. With the customary 1e-3,
# a tenth of what seeds differ by, it is an absolute deviation: less precise, and often unconverged (docs/metrics.md)
HUBER_DELTA = 1e-2
STARTS = 128
REFITS = 1000
# Seeds differ by .01 nat (standard deviation): two runs of one size differ by more than this in 5 % of cases, one-sided
SEED_NOISE = 0.01 * math.sqrt(2) * 1.645
MIN_SIZES, MIN_LENGTHS = 4, 3
# The most Newton steps of a fit. Most need 20; along the valley of an E near zero, more
MAX_STEPS = 200
# Of the gradient, as a share of what it would be if no two runs pulled in opposite directions
CONVERGED = 1e-4
# E, and both terms in the middle of the fitted range, lie in this range about the loss (log); the exponents in theirs
LOG_TERM = (-5.0, 0.5)
EXPONENT = (-1.0, 4.0)
NUM_PARAMETERS = 5
ROUNDING = 1e-13
# All tried at each step, the best is taken
DAMPING = np.logspace(-8, 8, 17)


@dataclass(frozen=True)
class Runs:
    """What was trained, one entry a run. All ``[runs]`` fp64.

    sizes   parameters, embeddings included
    tokens  tokens read
    losses  validation loss, nats/token
    """

    sizes: FloatArray
    tokens: FloatArray
    losses: FloatArray

    @classmethod
    def of(cls, sizes: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> "Runs":
        """From any sequences of numbers. ``ValueError`` for unequal lengths and for what is not positive and finite."""
        columns = [np.asarray(values, dtype=np.float64) for values in (sizes, tokens, losses)]
        if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
            raise ValueError(
                f"sizes, tokens and losses have shapes {[c.shape for c in columns]}; give one of each a run"
            )
        if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
            raise ValueError("sizes, tokens and losses must be positive and finite: leave out a run that diverged")
        return cls(*columns)


@dataclass(frozen=True)
class Law:
    """A fitted law: ``terms`` are ln E, ln A', a, ln B', b, where A' and B' are the terms at the centre of the runs.

    centre  (ln N, ln D) there; the centre takes nothing away from the law, but lets the optimum be found
    """

    terms: FloatArray
    centre: tuple[float, float]

    @property
    def exponent(self) -> float:
        """The a of A N^-a."""
        return float(self.terms[2])

    def loss(self, size: float, tokens: float) -> float:
        """Nats a token at a size and a length."""
        place = np.array([[math.log(size) - self.centre[0], math.log(tokens) - self.centre[1]]])
        return float(np.exp(_log_loss(self.terms[None], place)[0][0, 0]))

    @property
    def coefficients(self) -> dict[str, float]:
        """E, A, a, B, b as in the formula."""
        irreducible, size, a, data, b = (float(term) for term in self.terms)
        return {
            "E": math.exp(irreducible),
            "A": math.exp(size + a * self.centre[0]),
            "a": a,
            "B": math.exp(data + b * self.centre[1]),
            "b": b,
        }


@dataclass(frozen=True)
class Fit:
    """A law, how well it fits, and its bootstrap.

    r_squared  of ln L
    gradient   at the optimum, as a share of the largest possible; above ``CONVERGED`` there is no Fit
    refits     ``[refits, 5]`` terms of the laws of resampled runs
    noise      standard deviation of ln L that the law leaves unexplained, for the degrees of freedom that are left
    """

    law: Law
    runs: Runs
    r_squared: float
    gradient: float
    refits: FloatArray
    noise: float

    @property
    def _freedom(self) -> int:
        return len(self.runs.losses) - NUM_PARAMETERS

    def exponent(self) -> Interval:
        """The exponent a with its interval."""
        return self._around(self.law.exponent, self.refits[:, 2])

    def predict(self, size: float, tokens: float, *, seed: int) -> Interval:
        """The loss of a new run with its interval: the uncertainty of the law and the noise of one run together."""
        value = self.law.loss(size, tokens)
        place = np.array([[math.log(size) - self.law.centre[0], math.log(tokens) - self.law.centre[1]]])
        drawn = _log_loss(self.refits, place)[0][:, 0]
        drawn = drawn + self.noise * np.random.default_rng(seed).standard_normal(len(drawn))
        return self._around(value, np.exp(drawn))

    def _around(self, value: float, drawn: FloatArray) -> Interval:
        from scipy.special import ndtr, stdtrit

        # the quantiles of a bootstrap are normal where Student's are due: Hesterberg, Am. Stat. 69 (2015) 371
        tail = float(ndtr(stdtrit(self._freedom, (1 - LEVEL) / 2)))
        low, high = (float(end) for end in np.quantile(drawn, [tail, 1 - tail]))
        num_runs = len(self.runs.losses)
        return Interval(value, min(low, value), max(high, value), num_runs, num_runs)


def fit(runs: Runs, *, seed: int, refits: int = REFITS, starts: int = STARTS) -> Fit:
    """Fit the law: Huber's loss, smoothed, on ln L; best of ``starts`` starts; bootstrap over the runs' residuals.

    Raises ``UnderpoweredError`` for fewer than 4 sizes or 3 lengths, and where no start converges.
    Source  Hoffmann et al., arXiv:2203.15556, approach 3; that unconverged fits look like laws: Besiroglu et al.,
    arXiv:2404.10102.
    """
    num_sizes, num_lengths = len(np.unique(runs.sizes)), len(np.unique(runs.tokens))
    if num_sizes < MIN_SIZES or num_lengths < MIN_LENGTHS:
        raise UnderpoweredError(
            f"{num_sizes} sizes and {num_lengths} lengths of training: a law of {NUM_PARAMETERS} terms needs at least "
            f"{MIN_SIZES} and {MIN_LENGTHS}"
        )
    generator = np.random.default_rng(seed)
    places = np.stack([np.log(runs.sizes), np.log(runs.tokens)], axis=1)
    centre = places.mean(0)
    targets, places = np.log(runs.losses), places - centre
    low, high = _bounds(float(targets.mean()))

    tries = _minimise(_starts(generator, targets, starts, low, high), places, targets, low, high)
    converged = tries.gradient <= CONVERGED
    if not converged.any():
        raise UnderpoweredError(
            f"none of {starts} starts converged (smallest gradient {tries.gradient.min():.1e}, limit {CONVERGED:.0e}): "
            f"these losses do not follow the law"
        )
    best = int(np.argmin(np.where(converged, tries.objective, np.inf)))
    terms = tries.terms[best]
    residuals = targets - _log_loss(terms[None], places)[0][0]
    spread = float(((targets - targets.mean()) ** 2).sum())
    r_squared = 1 - float((residuals**2).sum()) / spread if spread else math.nan
    # the fit has taken up part of the noise
    freedom = len(targets) - NUM_PARAMETERS
    spare = residuals * math.sqrt(len(targets) / freedom)
    redrawn = _refit(generator, terms, places, spare, refits, low, high)
    noise = math.sqrt(float((residuals**2).sum()) / freedom)
    law = Law(terms, (float(centre[0]), float(centre[1])))
    return Fit(law, runs, r_squared, float(tries.gradient[best]), redrawn, noise)


@dataclass(frozen=True)
class _Tries:
    """Where each start ended: terms ``[starts, 5]``, objective and relative gradient ``[starts]``."""

    terms: FloatArray
    objective: FloatArray
    gradient: FloatArray


def _bounds(log_loss: float) -> tuple[FloatArray, FloatArray]:
    term, exponent = np.array(LOG_TERM) + log_loss, np.array(EXPONENT)
    ends = np.stack([term, term, exponent, term, exponent])
    return ends[:, 0], ends[:, 1]


def _starts(
    generator: np.random.Generator, targets: FloatArray, count: int, low: FloatArray, high: FloatArray
) -> FloatArray:
    """Shares of the loss over the three terms, and exponents of either sign, drawn at random.

    Between the signs lies a ridge, where the term is a constant: no descent crosses it.
    """
    shares = generator.dirichlet(np.ones(3), size=count)
    exponents = generator.uniform(0.02, 1.5, size=(count, 2))
    exponents[: count // 2, 0] *= EXPONENT[0] / 1.5
    terms = np.log(np.maximum(shares, 1e-3)) + targets.mean()
    columns = [terms[:, 0], terms[:, 1], exponents[:, 0], terms[:, 2], exponents[:, 1]]
    starts: FloatArray = np.clip(np.stack(columns, axis=1), low, high)
    return starts


def _refit(
    generator: np.random.Generator,
    terms: FloatArray,
    places: FloatArray,
    noise: FloatArray,
    refits: int,
    low: FloatArray,
    high: FloatArray,
) -> FloatArray:
    """Laws of the fitted losses with the noise dealt out anew, each from the optimum and its mirror."""
    drawn = generator.choice(noise - noise.mean(), size=(refits, len(noise)))
    targets = _log_loss(terms[None], places)[0] + drawn
    # the other sign of a, too, or no interval could ever reach across 0
    mirrored = terms * np.array([1, 1, -1, 1, 1])
    starts = np.clip(np.stack([terms, mirrored]), low, high)
    tries = _minimise(np.repeat(starts, refits, axis=0), places, np.tile(targets, (2, 1)), low, high)
    better = tries.objective.reshape(2, refits).argmin(0)
    # the optimum itself is checked; a refit that is still creeping along its valley predicts the same loss
    refitted: FloatArray = tries.terms.reshape(2, refits, NUM_PARAMETERS)[better, np.arange(refits)]
    return refitted


def _log_loss(terms: FloatArray, places: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The ln L ``[batch, runs]`` of terms ``[batch, 5]`` at (ln N, ln D) ``[runs, 2]``, and each term's share of L."""
    irreducible, size, a, data, b = (column[:, None] for column in terms.T)
    logs = np.stack([irreducible + 0 * places[:, 0], size - a * places[:, 0], data - b * places[:, 1]], axis=-1)
    largest = logs.max(-1)
    weights = np.exp(logs - largest[..., None])
    total = weights.sum(-1)
    return largest + np.log(total), weights / total[..., None]


def _huber(residuals: FloatArray) -> FloatArray:
    """Sum over runs, in units of delta^2: a plain sum would be so small that an optimiser stops where it starts.

    sqrt(1 + r^2) - 1 agrees with Huber's function at both ends, and has a second derivative in between.
    """
    values: FloatArray = (np.sqrt(1 + (residuals / HUBER_DELTA) ** 2) - 1).sum(-1)
    return values


def _derivatives(
    terms: FloatArray, places: FloatArray, targets: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gradient ``[batch, 5]`` and Hessian ``[batch, 5, 5]`` of the objective, and the largest gradient possible.

    ln L is the log of a sum of exponentials of z_k, each linear in the terms: its gradient is p_k dz_k, its Hessian
    the covariance of dz under p.
    """
    log_loss, shares = _log_loss(terms, places)
    # dz_k / d term_j  [runs, 3, 5]
    slopes = np.zeros((len(places), 3, NUM_PARAMETERS))
    slopes[:, 0, 0] = slopes[:, 1, 1] = slopes[:, 2, 3] = 1
    slopes[:, 1, 2], slopes[:, 2, 4] = -places[:, 0], -places[:, 1]
    first = np.einsum("brk,rkj->brj", shares, slopes)
    second = np.einsum("brk,rki,rkj->brij", shares, slopes, slopes, optimize=True)
    second -= first[..., :, None] * first[..., None, :]
    residuals = (log_loss - targets) / HUBER_DELTA
    root = np.sqrt(1 + residuals**2)
    pull = residuals / root / HUBER_DELTA
    inside = root**-3 / HUBER_DELTA**2
    gradient = np.einsum("br,brj->bj", pull, first)
    hessian = np.einsum("br,bri,brj->bij", inside, first, first, optimize=True) + np.einsum(
        "br,brij->bij", pull, second
    )
    return gradient, hessian, np.abs(first).sum((-2, -1)) / HUBER_DELTA


def _minimise(start: FloatArray, places: FloatArray, targets: FloatArray, low: FloatArray, high: FloatArray) -> _Tries:
    """Damped Newton steps from every start ``[batch, 5]`` at once, inside the bounds; targets ``[runs]`` or a row each.

    Curvature enters by its absolute value, so that saddles repel.
    """
    terms = start.copy()
    targets = np.broadcast_to(targets, (len(start), len(places)))
    objective = _huber(_log_loss(terms, places)[0] - targets)
    relative = np.full(len(start), np.inf)
    active = np.arange(len(start))
    for _ in range(MAX_STEPS):
        gradient, hessian, scale = _derivatives(terms[active], places, targets[active])
        here = terms[active]
        held = ((here <= low) & (gradient > 0)) | ((here >= high) & (gradient < 0))
        gradient[held] = 0
        hessian[held[:, :, None] | held[:, None, :]] = 0
        relative[active] = np.abs(gradient).max(1) / scale
        curvature, axes = np.linalg.eigh(hessian)
        along = np.einsum("bij,bi->bj", axes, gradient)[:, None] / (np.abs(curvature)[:, None] + DAMPING[:, None])
        moved = _inside(here[:, None], -np.einsum("bij,bdj->bdi", axes, along, optimize=True), low, high)
        log_loss = _log_loss(moved.reshape(-1, NUM_PARAMETERS), places)[0].reshape(*moved.shape[:2], -1)
        reached = _huber(log_loss - targets[active, None])
        best = reached.argmin(1)
        value = np.take_along_axis(reached, best[:, None], 1)[:, 0]
        going = (value < objective[active] * (1 - ROUNDING)) & (relative[active] > CONVERGED / 100)
        taken = active[going]
        terms[taken] = moved[going, best[going]]
        objective[taken] = value[going]
        active = taken
        if not len(active):
            break
    return _Tries(terms, objective, relative)


def _inside(here: FloatArray, step: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """A step cut short where it first meets a bound: cutting each term by itself would turn it aside."""
    room = np.where(step > 0, high - here, low - here)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(step == 0, np.inf, room / step)
    length = np.minimum(share.min(-1, keepdims=True), 1.0)
    moved: FloatArray = np.clip(here + length * step, low, high)
    # exactly on the bound, not a rounding inside it
    on_bound: FloatArray = np.where(share <= length, np.where(step > 0, high, low), moved)
    return on_bound


def persistence(runs: Runs, tokens: float) -> float:
    """The naive prediction that size changes nothing: mean loss of the largest size at this length."""
    there = runs.tokens == tokens
    largest = there & (runs.sizes == runs.sizes[there].max())
    return float(runs.losses[largest].mean())


def log_linear(runs: Runs, size: float, tokens: float) -> float:
    """The naive prediction of a straight line of the loss over ln N, at this length."""
    there = runs.tokens == tokens
    slope, level = np.polyfit(np.log(runs.sizes[there]), runs.losses[there], 1)
    return float(level + slope * math.log(size))


@dataclass(frozen=True)
class Falls:
    """How the loss moves with size where the length is the same, in nats.

    rise  the most that it rises from one size to the next larger one; below 0, it falls everywhere
    fall  the least that it falls from the smallest size to the largest
    """

    rise: float
    fall: float

    @property
    def monotone(self) -> bool:
        """No rise is beyond noise, and at every length the largest size is better by more than noise."""
        return self.rise <= SEED_NOISE and self.fall > SEED_NOISE


def falls(runs: Runs) -> Falls:
    """Compare sizes at each length. Several runs of one size and length count as their mean.

    Raises ``UnderpoweredError`` where no two sizes share a length.
    """
    rises, totals = [], []
    for tokens in np.unique(runs.tokens):
        there = runs.tokens == tokens
        sizes = np.unique(runs.sizes[there])
        means = [float(runs.losses[there & (runs.sizes == size)].mean()) for size in sizes]
        rises += [after - before for before, after in pairwise(means)]
        totals += [means[0] - means[-1]] if len(means) > 1 else []
    if not rises:
        raise UnderpoweredError("no two sizes were trained on the same number of tokens, so none can be compared")
    return Falls(max(rises), min(totals))
