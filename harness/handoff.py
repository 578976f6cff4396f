"""One text, many ways to read it: the logits and the final state must not depend on the way.

Whole, in uneven chunks, token by token, through a file, in a batch of its own, in another row; and for a model that
takes ``segments``, padded on either side and packed with another document. What differs first is named.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.evaluation import autocast
from harness.state_shapes import grows
from harness.sufficiency import beyond_rounding, rounding_of
from harness.trace import observing
from kernels.parity import rms_error
from models.protocol import State

CHUNKS = (1, 2, 5, 65)
"""Lengths of the first chunks, the rest is the last: one token, less than a convolution, more than a kernel's chunk."""

DIVERGED = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative error from which a tensor or a position is named as the first that differs. Verdicts use thresholds.toml."""

SHORTER = (0, 7, 20)
"""By how many tokens the rows of a padded batch are shorter than the longest, in turn."""


@dataclass(frozen=True)
class Passage:
    """What a way of reading gave: logits ``[positions, V]`` a text, in order, and the state at the end of each."""

    logits: tuple[Tensor, ...]
    states: tuple[State, ...]

    @classmethod
    def of_batch(cls, logits_BTV: Tensor, state: State) -> "Passage":
        """The rows of one batch."""
        return cls(tuple(logits_BTV), tuple(state.rows([row]) for row in range(len(logits_BTV))))


@dataclass(frozen=True)
class Agreement:
    """One way of reading against the passes that it must equal; errors are relative RMS.

    logits, state  of the logits and of the worst tensor of the final state; infinite when a shape differs
    worst          path of that tensor
    first_state    path of the first tensor, in layer order, that is beyond ``DIVERGED``; empty when none is
    first_position first position whose logits are; None when none is
    unmasked       the larger error of the same pass without ``segments``, for a way that uses them: the probe must see
                   what padding does
    """

    way: str
    logits: float
    state: float
    worst: str
    first_state: str = ""
    first_position: int | None = None
    unmasked: float | None = None

    @property
    def note(self) -> str:
        """What differs first, in words; empty when nothing does."""
        parts = [f"first state {self.first_state}"] if self.first_state else []
        parts += [] if self.first_position is None else [f"first position {self.first_position}"]
        return f"differs: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class HandOff:
    """Every way of reading one text, and what the state carries from its first half into its second.

    worth         relative change of the logits when the second half is read without the state: an error is small
                  beside this or it is no hand-off
    rounding      of the one pass in the dtype of the products against the same pass in fp32; 0 for fp32
    reload_error  of the worst tensor of the final state after saving and loading it: nothing may change. The pass that
                  follows may round differently, since loaded tensors can lie differently in memory
    """

    worth: float
    rounding: float
    reload_error: float
    agreements: tuple[Agreement, ...]

    @property
    def sees(self) -> bool:
        """Whether a second half without its state shows; NaN does, and is no hand-off."""
        return beyond_rounding(self.worth, self.rounding) != 0

    def share(self, agreement: Agreement) -> float:
        """The error of the logits over what the state is worth, both beyond rounding."""
        return beyond_rounding(agreement.logits, self.rounding) / beyond_rounding(self.worth, self.rounding)


def hand_off(model: nn.Module, tokens_BT: Tensor, scratch: Path, dtype: torch.dtype = torch.float32) -> HandOff:
    """Read ``tokens_BT`` in every way that needs no mask, and compare.

    ``scratch`` is a directory for saved states; ``dtype`` is that of the matrix products. The model must have the hook
    ``state``.
    """
    assert tokens_BT.shape[1] > sum(CHUNKS), f"give more than {sum(CHUNKS)} positions"
    half = tokens_BT.shape[1] // 2
    with observing(model), autocast(tokens_BT.device, dtype):
        whole_BTV, final = model(tokens_BT, return_states=True)
        whole = Passage.of_batch(whole_BTV, final)
        tolerance = DIVERGED[dtype]
        agreements = (
            compare("uneven chunks", _in_chunks(model, tokens_BT, CHUNKS), whole, tolerance),
            compare("token by token", _in_chunks(model, tokens_BT, [1] * (tokens_BT.shape[1] - 1)), whole, tolerance),
            compare("each row alone", _alone(model, list(tokens_BT)), whole, tolerance),
            compare("rows reordered", _reordered(model, tokens_BT, half), whole, tolerance),
            compare("saved and loaded", _in_chunks(model, tokens_BT, CHUNKS, _through(scratch)), whole, tolerance),
        )
        worth = rms_error(model(tokens_BT[:, half:]), whole_BTV[:, half:])
    with observing(model):
        rounding = rounding_of(model, tokens_BT, whole_BTV, dtype)(0)
    return HandOff(worth, rounding, _reload_error(final, scratch), agreements)


def masked_hand_off(model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Agreement, ...]:
    """Read padded and packed batches and compare them with each document alone. The model takes ``segments``.

    The rows are of unequal length, except for a model whose state grows with the text: it has one length a batch.
    Padding holds other real tokens: what stands there must not matter.
    """
    caches = bool(grows(model, tokens_BT))
    T = tokens_BT.shape[1]
    lengths = [T - (SHORTER[1] if caches else SHORTER[row % len(SHORTER)]) for row in range(len(tokens_BT))]
    tolerance = DIVERGED[dtype]
    with observing(model), autocast(tokens_BT.device, dtype):
        texts = [row[:length] for row, length in zip(tokens_BT, lengths, strict=True)]
        alone = _alone(model, texts)
        found = [
            _masked("padded left", model, texts, alone, tolerance, lambda padding, text: [padding, text]),
            _masked("padded right", model, texts, alone, tolerance, lambda padding, text: [text, padding]),
        ]
        first, second = list(tokens_BT[:, : T // 3]), list(tokens_BT[:, T // 3 :])
        before, after = _alone(model, first), _alone(model, second)
        expected = Passage((*before.logits, *after.logits), after.states)
        packed_BT = tokens_BT
        segments_BT = 1 + (torch.arange(T, device=packed_BT.device) >= T // 3).long().expand(len(packed_BT), -1)
        cuts = [slice(0, T // 3)] * len(first) + [slice(T // 3, T)] * len(second)
        found.append(_with_control("packed", model, packed_BT, segments_BT, cuts, expected, tolerance))
    return tuple(found)


def compare(way: str, found: Passage, expected: Passage, tolerance: float) -> Agreement:
    """Logits and states of two passages over the same texts; ``tolerance`` says from where on they differ."""
    logits = _distance(found.logits, expected.logits)
    wanted = [dict(state.items()) for state in expected.states]
    given = [dict(state.items()) for state in found.states]
    paths = list(wanted[0])
    if any(state.keys() != wanted[0].keys() for state in given):
        return Agreement(way, logits, math.inf, "the tree of the state", "the tree of the state")
    errors = {str(path): _distance([s[path] for s in given], [s[path] for s in wanted]) for path in paths}
    worst = max(errors, key=lambda path: (math.isnan(errors[path]), errors[path]))
    first = next((path for path, error in errors.items() if not error <= tolerance), "")
    position = _first_position(found.logits, expected.logits, tolerance)
    return Agreement(way, logits, errors[worst], worst, first, position)


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return math.inf
    return rms_error(
        torch.cat([t.flatten().double() for t in found]), torch.cat([t.flatten().double() for t in expected])
    )


def _first_position(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> int | None:
    """First position at which the logits of any text are off by more than ``tolerance`` times their size there."""
    positions = []
    for logits_TV, wanted_TV in zip(found, expected, strict=True):
        error_T = (logits_TV.double() - wanted_TV.double()).norm(dim=-1) / wanted_TV.double().norm(dim=-1)
        positions += (~(error_T <= tolerance)).nonzero().flatten().tolist()[:1]
    return min(positions, default=None)


def _in_chunks(
    model: nn.Module, tokens_BT: Tensor, lengths: Sequence[int], between: Callable[[State], State] = State.detach
) -> Passage:
    """Read in chunks of the given lengths and a last one of what is left; ``between`` handles the state on the way."""
    state, begin, logits = None, 0, []
    for length in (*lengths, tokens_BT.shape[1] - sum(lengths)):
        part_BTV, final = model(tokens_BT[:, begin : begin + length], state, return_states=True)
        logits.append(part_BTV)
        state, begin = between(final), begin + length
    assert state is not None, "there is at least one chunk"
    return Passage.of_batch(torch.cat(logits, dim=1), state)


def _through(scratch: Path) -> Callable[[State], State]:
    def save_and_load(state: State) -> State:
        state.save(scratch / "state.safetensors")
        device = next(tensor.device for _, tensor in state.items())
        return State.load(scratch / "state.safetensors").to(device)

    return save_and_load


def _reload_error(state: State, scratch: Path) -> float:
    """Relative RMS error of the worst tensor after a turn through a file; infinite for another shape or dtype."""
    given = dict(state.items())
    loaded = dict(_through(scratch)(state).items())
    if {path: t.dtype for path, t in loaded.items()} != {path: t.dtype for path, t in given.items()}:
        return math.inf
    return max(_distance([loaded[path]], [tensor]) for path, tensor in given.items())


def _alone(model: nn.Module, texts: Sequence[Tensor]) -> Passage:
    """Each text ``[positions]`` in a batch of its own."""
    passes = [model(text_T[None], return_states=True) for text_T in texts]
    return Passage(tuple(logits_BTV[0] for logits_BTV, _ in passes), tuple(state for _, state in passes))


def _reordered(model: nn.Module, tokens_BT: Tensor, half: int) -> Passage:
    """The second half with the rows, and their states, in reverse order; put back afterwards."""
    reverse = list(range(len(tokens_BT)))[::-1]
    head_BTV, state = model(tokens_BT[:, :half], return_states=True)
    tail_BTV, final = model(tokens_BT[reverse, half:], state.rows(reverse), return_states=True)
    return Passage.of_batch(torch.cat([head_BTV, tail_BTV[reverse]], dim=1), final.rows(reverse))


def _masked(
    way: str,
    model: nn.Module,
    texts: Sequence[Tensor],
    alone: Passage,
    tolerance: float,
    lay: Callable[[Tensor, Tensor], list[Tensor]],
) -> Agreement:
    """The texts of unequal length in one batch; ``lay`` puts padding and text of a row in order."""
    width = max(len(text_T) for text_T in texts) + SHORTER[1]
    rows, marks, cuts = [], [], []
    for text_T in texts:
        padding_P = text_T.flip(0)[: width - len(text_T)]
        rows.append(torch.cat(lay(padding_P, text_T)))
        marks.append(torch.cat(lay(torch.zeros_like(padding_P), torch.ones_like(text_T))))
        begin = int(marks[-1].nonzero()[0])
        cuts.append(slice(begin, begin + len(text_T)))
    return _with_control(way, model, torch.stack(rows), torch.stack(marks), cuts, alone, tolerance)


def _with_control(
    way: str,
    model: nn.Module,
    tokens_BT: Tensor,
    segments_BT: Tensor,
    cuts: Sequence[slice],
    expected: Passage,
    tolerance: float,
) -> Agreement:
    """A pass with ``segments`` and one without, against the documents alone, which are the ``cuts`` of the rows."""

    def read(logits_BTV: Tensor, state: State) -> Agreement:
        passage = Passage.of_batch(logits_BTV, state)
        rows = [passage.logits[index % len(logits_BTV)][cut] for index, cut in enumerate(cuts)]
        return compare(way, Passage(tuple(rows), passage.states), expected, tolerance)

    blind = read(*model(tokens_BT, return_states=True))
    masked = read(*model(tokens_BT, return_states=True, segments=segments_BT))
    return Agreement(
        way, masked.logits, masked.state, masked.worst, masked.first_state, masked.first_position,
        unmasked=max(blind.logits, blind.state),
    )  # fmt: skip
