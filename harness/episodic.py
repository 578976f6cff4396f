"""Memory of what was said once: linear probes of the state, and transplants of it.

Prompts come from ``fixtures.needles``; here the model reads them and the answers are scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.batching import rows_at_once
from harness.metrics.intervals import LEVEL, ClusterRatio, Interval, bootstrap_ratio, design_effect, t_interval, wilson
from harness.metrics.probe import Probe, choose_penalty, fit_probe, usable_information
from harness.state_sketch import Site, Sketcher
from harness.trace import observing, state_after
from models.protocol import State

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LAGS = (0, 8, 32)
"""Tokens of other text, at least, between the statements and the query."""

RECALL_LAG = 8
"""Lag at which a state that recalls nothing is called so: past the reach of shifts and convolutions."""

WIDTH = 256
"""Features a probe sees, whatever the size of the state: all sites get the same capacity."""

ITEM_ICC = 0.1
"""Correlation assumed between answers in the same document, for the effective number of items."""

SHUFFLES = 24
"""Fits to shuffled labels, over all sites and lags."""

CONTROL_LEVEL = 0.998
"""Level of a control's interval: one session in a thousand is wrongly refused."""

TRANSPLANTS = 64
"""Prompts whose state is exchanged."""

BATCH_ROWS = 32
"""Prompts of one pass on a CPU."""


@dataclass(frozen=True)
class Prompts:
    """Two statements about two entities with different values, other text, and a query that names one of them.

    statements, swapped ``[n, P]``; swapped gives each entity the other's value
    filler ``[n, F]`` text between, of which a lag uses the first tokens; queries ``[n, Q]`` end just before the value
    values, others ``[n]`` index of the queried entity's value and of the other one
    recent ``[n]`` index of the value that was named last
    entities, documents ``[n]``
    """

    statements: Integers
    swapped: Integers
    filler: Integers
    queries: Integers
    values: Integers
    others: Integers
    recent: Integers
    entities: Integers
    documents: Integers

    def __len__(self) -> int:
        return len(self.values)

    @property
    def tokens(self) -> int:
        """Tokens read for all lags."""
        return sum(part.size for part in (self.statements, self.filler)) + len(LAGS) * self.queries.size

    def first(self, count: int) -> "Prompts":
        """The first ``count`` prompts."""
        return Prompts(*(getattr(self, part.name)[:count] for part in fields(self)))


@dataclass(frozen=True)
class SiteMemory:
    """What a linear probe finds in one branch's LONG state of one layer, at one lag, on new entities in new sentences.

    information  usable, in nats: ln p(v | state) - ln p(v); ln 10 = 2.30 at most for ten values
    fit          log-likelihood on held-out entities of the training half, by which a site is chosen, nats
    """

    layer: int
    branch: str
    lag: int
    accuracy: Interval
    information: Interval
    fit: float


@dataclass(frozen=True)
class Binding:
    """Beside a probe of the queried value: whether it knows whose value it is, or only which were named.

    binding      share of the right value among the answers that name one of the two values: .5 without binding;
                 None when no answer does; its n says how many do
    control      accuracy where every entity has a random label instead, on entities that were fitted
    selectivity  accuracy - control
    """

    binding: Interval | None
    control: float
    selectivity: float


@dataclass(frozen=True)
class Transplant:
    """What became of a forced choice when a state came from a donor that heard the two values swapped.

    followed  of ``differing`` prompts on which donor and host choose differently, how many went with the donor
    """

    part: str
    followed: int
    differing: int
    prompts: int


@dataclass(frozen=True)
class EpisodicMemory:
    """Everything the probes found.

    recent   of the value that was named last, before any query: memory without a question
    queried  of the queried entity's value, after the query; bindings belong to them, one each
    shuffled mean accuracy of ``SHUFFLES`` probes fitted to shuffled labels, at the control level
    """

    recent: list[SiteMemory]
    queried: list[SiteMemory]
    bindings: list[Binding]
    shuffled: Interval
    transplants: list[Transplant]
    choices: int


def best_site(sites: Sequence[SiteMemory], lag: int) -> SiteMemory:
    """The one whose probe did best on held-out entities of the training half, at a lag: no test item chose it."""
    return max((site for site in sites if site.lag == lag), key=lambda site: site.fit)


# --- states ----------------------------------------------------------------------------------------------------------


Features = dict[tuple[int, Site], Floats]
"""``[n, width]`` by lag and site."""


def read_prompts(
    model: nn.Module, prompts: Prompts, sketch: Sketcher, *, device: str, lags: Sequence[int]
) -> tuple[Features, Features]:
    """Features of the state before the query and after it. The model must have the hook ``state``."""
    before: dict[tuple[int, Site], list[Tensor]] = {}
    after: dict[tuple[int, Site], list[Tensor]] = {}
    for rows in _batches(prompts, device):
        filler, query = ids(prompts.filler[rows], device), ids(prompts.queries[rows], device)
        state, read = state_after(model, ids(prompts.statements[rows], device)), 0
        for lag in lags:
            if lag > read:
                state, read = state_after(model, filler[:, read:lag], state), lag
            for parts, place, found in ((before, f"before {lag}", state),
                                        (after, f"after {lag}", state_after(model, query, state))):  # fmt: skip
                for site, features in sketch(found, place).items():
                    parts.setdefault((lag, site), []).append(features.cpu())
    return _joined(before), _joined(after)


def _batches(prompts: Prompts, device: str) -> Iterator[slice]:
    length = sum(part.shape[1] for part in (prompts.statements, prompts.filler, prompts.queries))
    size = rows_at_once(BATCH_ROWS, length, device)
    return (slice(begin, begin + size) for begin in range(0, len(prompts), size))


def _joined(parts: Mapping[tuple[int, Site], list[Tensor]]) -> Features:
    return {place: torch.cat(features).double().numpy() for place, features in parts.items()}


def ids(tokens: Integers, device: str) -> Tensor:
    """Token ids on the device."""
    return torch.from_numpy(np.ascontiguousarray(tokens)).to(device)


# --- probes ----------------------------------------------------------------------------------------------------------


def probe_memory(
    model: nn.Module,
    prompts: Mapping[str, Prompts],
    choices: Sequence[int],
    *,
    device: str,
    seed: int,
    lags: Sequence[int] = LAGS,
) -> EpisodicMemory:
    """Fit and test the probes of every site and lag, and transplant states.

    prompts  ``train``, ``test`` (new entities, new sentences) and ``seen`` (entities of train, new sentences)
    choices  token ids of the values
    """
    sketch = Sketcher(WIDTH, seed)
    # train comes first: its first batch sets the scale
    read = {
        name: read_prompts(model, prompts[name], sketch, device=device, lags=lags) for name in ("train", "test", "seen")
    }
    train, test, seen = (prompts[name] for name in ("train", "test", "seen"))
    labels = entity_labels(np.concatenate([train.entities, seen.entities]), len(choices), seed)
    generator = np.random.default_rng(seed)
    recent, queried, bindings, shuffled = [], [], [], []
    places = sorted(read["train"][0])
    for place in places:
        x, x_test = (read[name][0][place] for name in ("train", "test"))
        asked, asked_test, asked_seen = (read[name][1][place] for name in ("train", "test", "seen"))
        common = (train, test, len(choices), seed)
        recent.append(_probe_site(place, (x, train.recent), (x_test, test.recent), *common)[0])
        site, probe, penalty = _probe_site(place, (asked, train.values), (asked_test, test.values), *common)
        control = fit_probe(asked, labels[: len(train)], len(choices), penalty).log_probabilities(asked_seen)
        remembered = float((control.argmax(1) == labels[len(train) :]).mean())
        answers = probe.log_probabilities(asked_test).argmax(1)
        queried.append(site)
        bindings.append(Binding(_binding(answers, test), remembered, site.accuracy.value - remembered))
        for _ in range(-(-SHUFFLES // len(places))):
            mixed = fit_probe(asked, generator.permutation(train.values), len(choices), penalty)
            shuffled.append(float((mixed.log_probabilities(asked_test).argmax(1) == test.values).mean()))
    moved = transplants(model, test.first(TRANSPLANTS), choices, device=device)
    # what varies from one shuffle to the next is the shuffle: the items and what they share stay the same
    return EpisodicMemory(recent, queried, bindings, t_interval(shuffled, CONTROL_LEVEL), moved, len(choices))


def _probe_site(
    place: tuple[int, Site],
    fitted: tuple[Floats, Integers],
    tested: tuple[Floats, Integers],
    train: Prompts,
    test: Prompts,
    classes: int,
    seed: int,
) -> tuple[SiteMemory, Probe, float]:
    """Fit to features and labels of the training prompts, score on those of the test prompts; with the penalty."""
    penalty, fit = choose_penalty(*fitted, train.entities, classes)
    probe = fit_probe(*fitted, classes, penalty)
    right = probe.log_probabilities(tested[0]).argmax(1) == tested[1]
    information = ClusterRatio.of(usable_information(probe, *tested), np.ones(len(test)), test.documents)
    lag, (layer, branch) = place
    found = SiteMemory(
        layer, branch, lag, proportion(right, test.documents), bootstrap_ratio(information, seed=seed), fit
    )
    return found, probe, penalty


def entity_labels(entities: Integers, classes: int, seed: int) -> Integers:
    """One random label an entity ``[n]``: the control task of Hewitt & Liang (EMNLP 2019), which holds nothing to read.

    A probe that solves it has learnt the entities by heart.
    """
    found, place = np.unique(entities, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).integers(classes, size=len(found))[place])


def proportion(right_n: NDArray[np.bool_], documents: Integers, level: float = LEVEL) -> Interval:
    """Wilson's interval of the share of right answers, items discounted for the documents they share."""
    n, clusters = len(right_n), len(np.unique(documents))
    return wilson(float(right_n.sum()), n, deff=design_effect(n / clusters, ITEM_ICC), level=level)


def _binding(answers: Integers, prompts: Prompts) -> Interval | None:
    named = (answers == prompts.values) | (answers == prompts.others)
    return proportion(answers[named] == prompts.values[named], prompts.documents[named]) if named.any() else None


# --- transplants -----------------------------------------------------------------------------------------------------


def transplants(
    model: nn.Module, prompts: Prompts, choices: Sequence[int], *, device: str, lag: int = 8
) -> list[Transplant]:
    """Give the query LONG states that heard the values swapped: of all branches, and of each one of several.

    ``lag`` tokens of the same text lie between, so that token shifts and convolutions hold the same input.
    """
    host_n, donor_n = [], []
    given: dict[str, list[Integers]] = {}
    for rows in _batches(prompts, device):
        filler, query = ids(prompts.filler[rows, :lag], device), ids(prompts.queries[rows], device)
        pair = torch.from_numpy(np.stack([prompts.values[rows], prompts.others[rows]], axis=1))
        own = state_after(model, torch.cat([ids(prompts.statements[rows], device), filler], dim=1))
        other = state_after(model, torch.cat([ids(prompts.swapped[rows], device), filler], dim=1))
        long = {path for path, _ in own.long_items()}
        branches = list(dict.fromkeys(path.branch for path in long))
        parts = {"all": set(branches), **({b: {b} for b in sorted(branches)} if len(branches) > 1 else {})}

        def choose(state: State, query: Tensor = query, pair: Tensor = pair) -> Integers:
            scores = choice_scores(model, query, choices, state)
            return np.asarray(scores.gather(1, pair).argmax(1).numpy())

        host_n.append(choose(own))
        donor_n.append(choose(other))
        for part, taken in parts.items():
            moved = own.replace(other, lambda path, taken=taken, long=long: path in long and path.branch in taken)  # type: ignore[misc]
            given.setdefault(part, []).append(choose(moved))
    host, donor = np.concatenate(host_n), np.concatenate(donor_n)
    differing = host != donor
    return [
        Transplant(part, int((np.concatenate(chosen)[differing] == donor[differing]).sum()), int(differing.sum()),
                   len(prompts))
        for part, chosen in given.items()
    ]  # fmt: skip


def choice_scores(model: nn.Module, tokens: Tensor, choices: Sequence[int], state: State | None = None) -> Tensor:
    """Log-probabilities ``[B, choices]`` of what follows the tokens, fp64 on the host."""
    with observing(model):
        logits_BTV: Tensor = model(tokens) if state is None else model(tokens, state)
        return logits_BTV[:, -1].double().log_softmax(-1)[:, list(choices)].cpu()
