"""Ablation of states: what a model says next when part of what it carries is taken away or swapped.

All texts stop at the same boundary, each row's state is replaced branch by branch, and the same tokens follow,
teacher-forced. States are addressed by path, so a key-value cache serves as well as a recurrent state: at one
boundary all rows have the same shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from harness.data import DataError
from harness.metrics.interaction import divergences
from harness.trace import observing, trace
from models.protocol import SHORT_KINDS, State, StatePath

Kinds = Literal["long", "all"]
"""``long``: what may remember without limit. ``all``: token shifts and convolution tails as well."""


@dataclass(frozen=True)
class Continuation:
    """What follows a boundary, from the clean state and from each ablated one; all ``[n, h]`` fp64 on the CPU.

    clean_ce  cross entropy of the true tokens, nats, from the clean state
    ce        the same from each ablated state, by name
    kl        KL(p_clean || p_ablated) over the vocabulary, nats, by name
    """

    clean_ce: Tensor
    ce: dict[str, Tensor]
    kl: dict[str, Tensor]


def states_at(model: nn.Module, tokens_nT: Tensor, positions: Sequence[int], batch_size: int) -> tuple[State, ...]:
    """The true states of all rows after each of ``positions`` (ascending): one reading of the text serves them all."""
    traces = [
        trace(model, tokens_nT[begin : begin + batch_size], positions, activations=False)
        for begin in range(0, len(tokens_nT), batch_size)
    ]
    return tuple(State.cat([t.states[index] for t in traces]) for index in range(len(positions)))


def boundary_states(model: nn.Module, tokens_nT: Tensor, t: int, batch_size: int) -> State:
    """The true states of all rows after ``t`` tokens."""
    return states_at(model, tokens_nT, [t], batch_size)[0]


def donors(documents: ArrayLike, seed: int) -> NDArray[np.int64]:
    """A permutation ``[n]`` that gives each row a donor row of another document, at random by ``seed``.

    Raises ``DataError`` when there is none: one document has more than half of the rows.
    """
    rows = np.asarray(documents)
    names, counts = np.unique(rows, return_counts=True)
    largest = int(counts.max())
    if 2 * largest > len(rows):
        raise DataError(
            f"validation document {names[counts.argmax()]} has {largest} of the {len(rows)} windows, so some have no "
            f"partner in another document to take a state from; give a corpus whose documents each have at most half"
        )
    generator = np.random.default_rng(seed)
    # rows grouped by document, documents and rows in random order: a step as long as the largest group leaves any group
    place = dict(zip(names.tolist(), generator.permutation(len(names)).tolist(), strict=True))
    order = np.lexsort((generator.random(len(rows)), [place[name] for name in rows.tolist()]))
    found = np.empty(len(rows), np.int64)
    found[order] = np.roll(order, -largest)
    return found


def swap(state: State, donor: State, branches: str | Sequence[str], kinds: Kinds = "long") -> State:
    """The state with the tensors of ``branches`` taken from ``donor``, in all layers."""
    chosen = {branches} if isinstance(branches, str) else set(branches)
    unknown = chosen - set(state.branches)
    assert not unknown, f"no branch {sorted(unknown)}; the state has {state.branches}"

    def where(path: StatePath) -> bool:
        return path.branch in chosen and (kinds == "all" or path.kind not in SHORT_KINDS)

    return state.replace(donor, where)


def zero_state(state: State) -> State:
    """Zero in place of every tensor of numbers that can be averaged; counters stay, as they say where a text is."""
    return state.map(lambda _, tensor: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor)


def mean_state(state: State) -> State:
    """The mean over the rows in place of every row; counters stay."""
    return state.map(
        lambda _, tensor: tensor.mean(0, keepdim=True).expand_as(tensor) if tensor.is_floating_point() else tensor
    )


def long_branches(state: State) -> tuple[str, ...]:
    """Branches that have a LONG state, in order of first appearance."""
    return tuple(dict.fromkeys(path.branch for path, _ in state.long_items()))


def continue_from(
    model: nn.Module,
    clean: State,
    ablations: Mapping[str, State],
    inputs_nh: Tensor,
    targets_nh: Tensor,
    batch_size: int,
) -> Continuation:
    """Read ``inputs_nh`` from the clean state and from each ablated one; ``targets_nh`` are the tokens one later."""
    assert inputs_nh.shape == targets_nh.shape
    rows = [slice(begin, begin + batch_size) for begin in range(0, len(inputs_nh), batch_size)]
    clean_ce: list[Tensor] = []
    ce: dict[str, list[Tensor]] = {name: [] for name in ablations}
    kl: dict[str, list[Tensor]] = {name: [] for name in ablations}
    with observing(model):
        for some in rows:
            targets_bh = targets_nh[some]
            clean_bhV = _logits(model, inputs_nh[some], clean, some).log_softmax(-1)
            clean_ce.append(_cross_entropy(clean_bhV, targets_bh))
            for name, state in ablations.items():
                ablated_bhV = _logits(model, inputs_nh[some], state, some).log_softmax(-1)
                ce[name].append(_cross_entropy(ablated_bhV, targets_bh))
                kl[name].append(divergences(clean_bhV, ablated_bhV).double().cpu())
    return Continuation(
        torch.cat(clean_ce),
        {name: torch.cat(parts) for name, parts in ce.items()},
        {name: torch.cat(parts) for name, parts in kl.items()},
    )


def _logits(model: nn.Module, inputs_bh: Tensor, state: State, rows: slice) -> Tensor:
    logits_bhV: Tensor = model(inputs_bh, state.map(lambda _, tensor: tensor[rows]), return_states=True)[0]
    return logits_bhV.float() if logits_bhV.dtype in (torch.float16, torch.bfloat16) else logits_bhV


def _cross_entropy(log_probs_bhV: Tensor, targets_bh: Tensor) -> Tensor:
    return -log_probs_bhV.gather(-1, targets_bh[..., None]).squeeze(-1).double().cpu()
