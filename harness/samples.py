"""Generated text, for a reader and for code: what a model goes on to say, how varied and likely, and if it is talk."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from harness.generate import Continuation, generate
from harness.metrics.clustered import clustered_share
from harness.metrics.code_syntax import looks_like_code
from harness.metrics.diversity import distinct, repetition
from harness.metrics.intervals import Interval

Decode = Callable[[list[int]], str]
LogP = Callable[[list[int]], NDArray[np.float64]]
"""Log-probability of each of some tokens under a model of single tokens, nats."""

TEMPERATURE, TOP_P = 0.8, 0.95
"""Of every sample. Greedy text of a small model is a loop; without a nucleus one slip derails it."""


CODE_CORPUS = 0.1
"""Share of stretches that look like code above which a corpus is one of code."""


@dataclass(frozen=True)
class Diversity:
    """Of several texts together: see ``harness.metrics.diversity``."""

    distinct_1: float
    distinct_2: float
    repetition: float


def diversity(texts: Sequence[Sequence[int]]) -> Diversity:
    """Of texts of as many tokens each."""
    return Diversity(distinct(texts, 1), distinct(texts, 2), repetition(texts))


@dataclass(frozen=True)
class Samples:
    """What a model made of some openings.

    texts       one a prompt
    perplexity  exp of the mean nats a generated token, under the model itself as it is; far below that of real text
                where it loops
    unigram     the same tokens under the frequencies of the training text
    repeatable  a second time, with the same seed, it says the same
    """

    prompts: list[str]
    texts: list[str]
    diversity: Diversity
    perplexity: float
    unigram: float
    repeatable: bool


def read_samples(
    model: nn.Module,
    prompts: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Decode,
    unigram: LogP,
    *,
    tokens: int,
    seed: int,
    device: str,
) -> Samples:
    """Continue every prompt once, twice over. Raises ``GenerationError``."""
    ids = [encode(prompt) for prompt in prompts]

    def say() -> list[Continuation]:
        return generate(
            model, ids, tokens=tokens, seed=seed, device=device, temperature=TEMPERATURE, top_p=TOP_P
        )  # fmt: skip

    said, again = say(), say()
    spoken = [each.ids for each in said]
    return Samples(
        list(prompts),
        [decode(each) for each in spoken],
        diversity(spoken),
        _perplexity([each.log_p for each in said]),
        _perplexity([unigram(each).tolist() for each in spoken]),
        spoken == [each.ids for each in again],
    )


def _perplexity(log_p: Sequence[Sequence[float]]) -> float:
    return math.exp(-float(np.mean([value for text in log_p for value in text])))


@dataclass(frozen=True)
class CodeReading:
    """How much of what is said looks like code.

    share    of replies that do, with its interval over prompts
    corpus   of as many stretches of the text it learned from, of as many tokens
    example  the first reply that does; empty where there is none
    """

    share: Interval
    corpus: Interval
    example: str

    @property
    def learned_from_code(self) -> bool:
        """Whether the text it learned from is code beyond doubt: more than a stretch in ten."""
        return self.corpus.low > CODE_CORPUS


def read_code(
    model: nn.Module,
    prompts: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Decode,
    natural: Sequence[tuple[list[int], int]],
    *,
    count: int,
    tokens: int,
    seed: int,
    device: str,
) -> CodeReading:
    """``count`` replies to every prompt, and ``natural`` stretches of real text with the document of each."""
    said = generate(
        model, [encode(prompt) for prompt in prompts], tokens=tokens, seed=seed, device=device, count=count,
        temperature=TEMPERATURE, top_p=TOP_P,
    )  # fmt: skip
    replies = [decode(each.ids) for each in said]
    code = [looks_like_code(reply) for reply in replies]
    return CodeReading(
        clustered_share(np.array(code, float), np.array([each.prompt for each in said])),
        clustered_share(
            np.array([looks_like_code(decode(ids)) for ids, _ in natural], float),
            np.array([document for _, document in natural]),
        ),
        next((reply for reply, found in zip(replies, code, strict=True) if found), ""),
    )
