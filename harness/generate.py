"""Text from a model, token by token: seeded, and the same whether it carries a state or reads everything again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.metrics.sampling import choose
from harness.trace import observing
from models.protocol import capabilities

Next = Callable[[Tensor], Tensor]
"""Takes the tokens that are new ``[B, T]``, gives the logits of what follows them ``[B, V]``."""


class GenerationError(HarnessError):
    """A model gave no distribution to draw a token from."""


@dataclass(frozen=True)
class Continuation:
    """What a model said after a prompt.

    prompt  index of the prompt
    ids     the tokens
    log_p   of each under the model itself as it is, whatever the temperature and the nucleus were; nats
    """

    prompt: int
    ids: list[int] = field(default_factory=list)
    log_p: list[float] = field(default_factory=list)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    seed: int,
    device: str,
    count: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Continuation]:
    """``count`` continuations of each prompt, ``tokens`` long, in the order of the prompts.

    A model with the hook ``state`` reads each token once; any other reads the whole text for every token. What is drawn
    follows from the seed, the prompt's place and the model, not from how prompts are grouped. Temperature 0 is greedy.
    Raises ``GenerationError`` when the model's logits hold NaN.
    """
    assert all(len(prompt) for prompt in prompts), "a prompt has at least one token"
    draws = np.random.default_rng(seed).random((len(prompts), count, tokens))
    found = [[Continuation(place) for _ in range(count)] for place in range(len(prompts))]
    by_length: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(place)
    with observing(model):
        for places in by_length.values():
            rows = [found[place][copy] for place in places for copy in range(count)]
            new_BT = torch.tensor([list(prompts[row.prompt]) for row in rows], device=device)
            follow = _carrying(model) if "state" in capabilities(model) else _reading_again(model)
            draws_BT = draws[places].reshape(len(rows), tokens)
            for step in range(tokens):
                new_BT = _draw(follow(new_BT), rows, draws_BT[:, step], temperature, top_p).to(device)
    return [continuation for copies in found for continuation in copies]


def _draw(
    logits_BV: Tensor,
    rows: Sequence[Continuation],
    draw_B: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    temperature: float,
    top_p: float,
) -> Tensor:
    log_p_BV = logits_BV.double().log_softmax(-1).cpu().numpy()
    try:
        ids_B = choose(log_p_BV, draw_B, temperature=temperature, top_p=top_p)
    except ValueError as error:
        raise GenerationError(f"after {len(rows[0].ids)} generated tokens: {error}; look at G1 and S1") from error
    for row, token, log_p_V in zip(rows, ids_B.tolist(), log_p_BV, strict=True):
        row.ids.append(token)
        row.log_p.append(float(log_p_V[token]))
    return torch.from_numpy(ids_B)[:, None]


def _carrying(model: nn.Module) -> Next:
    state = None

    def follow(new_BT: Tensor) -> Tensor:
        nonlocal state
        logits_BTV, state = model(new_BT, state, return_states=True)
        last_BV: Tensor = logits_BTV[:, -1]
        return last_BV

    return follow


def _reading_again(model: nn.Module) -> Next:
    read: list[Tensor] = []

    def follow(new_BT: Tensor) -> Tensor:
        read.append(new_BT)
        last_BV: Tensor = model(torch.cat(read, dim=1))[:, -1]
        return last_BV

    return follow
