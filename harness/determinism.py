"""Does the same text give the same bits twice? Other work, other memory and other random numbers lie between."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.trace import observing
from kernels.parity import rms_error
from models.protocol import State


@dataclass(frozen=True)
class Repetition:
    """A pass against the first one over the same tokens.

    logits, state  relative RMS difference, 0 when all bits agree; NaN when a value is not a number
    worst          path of the state tensor that differs most
    identical      every bit of the logits and of the state agrees
    """

    logits: float
    state: float
    worst: str
    identical: bool


@contextmanager
def deterministic() -> Iterator[None]:
    """Torch's deterministic algorithms inside, and NaN in all memory that torch hands out unwritten.

    An operation without such an algorithm runs as it is: what is judged is the outcome, not the promise.
    """
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic", category=UserWarning)
        # not use_deterministic_algorithms: that imports the compiler, which takes a second
        torch.set_deterministic_debug_mode("warn")
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.set_deterministic_debug_mode(mode)


def repetitions(model: nn.Module, tokens_BT: Tensor, count: int = 3) -> list[Repetition]:
    """Read ``tokens_BT`` once and then ``count`` times more, with other work between, and compare each with the first.

    Between two passes the model reads other text of another shape, random numbers are drawn, and memory as large as
    the results is filled with NaN and freed. The model must have the hook ``state``.
    """
    found = []
    # the random state must not start over with each pass: noise would then repeat itself
    with observing(model), deterministic():
        logits_BTV, state = model(tokens_BT, return_states=True)
        first_BTV, first = logits_BTV.clone(), state.clone()
        for index in range(count):
            model(tokens_BT[: len(tokens_BT) - index % len(tokens_BT), index + 1 :].flip(1), return_states=True)
            torch.rand(index + 1, device=tokens_BT.device)
            _poison([first_BTV, *(tensor for _, tensor in first.items())])
            logits_BTV, state = model(tokens_BT, return_states=True)
            found.append(_compare(logits_BTV, state, first_BTV, first))
    return found


def _compare(logits_BTV: Tensor, state: State, first_BTV: Tensor, first: State) -> Repetition:
    wanted = dict(first.items())
    errors = {str(path): rms_error(tensor, wanted[path]) for path, tensor in state.items()}
    worst = max(errors, key=lambda path: (errors[path] != errors[path], errors[path]))
    same = all(torch.equal(tensor, wanted[path]) for path, tensor in state.items())
    identical = same and torch.equal(logits_BTV, first_BTV)
    return Repetition(rms_error(logits_BTV, first_BTV), errors[worst], worst, identical)


def _poison(results: list[Tensor]) -> None:
    """Leave NaN in the memory that the next results will probably get."""
    for blocks in [[torch.full_like(result, float("nan")) for result in results] for _ in range(2)]:
        blocks.clear()
