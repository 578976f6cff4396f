"""One training along its checkpoints: the same documents read by the weights of each stored step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from harness.checkpoint import CheckpointError, load_weights
from harness.data import Windows
from harness.probe_row import probe_row
from harness.state_probe import sample_states
from harness.trace import observing
from harness.training_files import checkpoint_directory, checkpoint_steps

T = TypeVar("T")


def over_checkpoints(directory: Path, model: nn.Module, look: Callable[[nn.Module], T]) -> dict[int, T]:
    """What ``look`` finds of the weights of each step that the training in ``directory`` kept, ascending.

    The weights are loaded into ``model`` one after the other; ``look`` sees it in eval mode, without a graph.
    Afterwards the model has the weights, mode and random state that it had. Raises ``CheckpointError`` when no weights
    were kept, or when they are damaged or another model's.
    """
    steps = checkpoint_steps(directory)
    if not steps:
        raise CheckpointError(
            f"{directory}: this training kept no weights; ask for some with --set train.checkpoint_steps=[50, 200]"
        )
    found = {}
    with _weights_kept(model), observing(model):
        for step in steps:
            load_weights(checkpoint_directory(directory, step), model)
            found[step] = look(model)
    return found


def trace_checkpoints(directory: Path, model: nn.Module, windows: Windows, *, device: str) -> dict[int, dict[str, Any]]:
    """The numbers of a probe row (``harness.probe_row``) of each kept step, all from true states of ``windows``.

    A probe in training looks at a few short windows; these are as many and as long as the caller wants, so that a
    change from step to step is one of the weights. The model must have the hook ``state``.
    """
    return over_checkpoints(directory, model, lambda seen: probe_row(sample_states(seen, windows, device=device)))


@contextmanager
def _weights_kept(model: nn.Module) -> Iterator[None]:
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)
