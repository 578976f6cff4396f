"""Token data as the training loop and the checks see it: split, tokenised, hashed, bounded by documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

Tokens = NDArray[np.uint16]


class DataError(HarnessError):
    """The data cannot serve: too short, empty, or not what its manifest says. The message says what to do."""


@dataclass(frozen=True)
class Split:
    """One split: the tokens of its documents end to end, each closed by the end-of-document token where it is text.

    tokens    ``[n]`` uint16, memory-mapped
    offsets   ``[documents + 1]``; document i is ``tokens[offsets[i]:offsets[i + 1]]``
    names     one name a document, for messages and for clustered intervals
    num_bytes UTF-8 bytes of the text behind the tokens, for bits per byte (0 for a source without text)
    """

    tokens: Tokens
    offsets: NDArray[np.int64]
    names: tuple[str, ...]
    num_bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class TokenDataset:
    """A corpus ready for training and measurement. ``fixtures.corpora.prepare`` makes it.

    corpus_sha256 hashes the text and its split, tokenizer_sha256 the tokenizer file (or the source's definition).
    entropy_rate_nats is known for synthetic sources only. embedded is True for the corpora that ship with the
    harness: runs on them above tiny are smoke evidence and say so. tokenizer_file is the ``tokenizer.json`` behind the
    tokens; None for a source without text.
    """

    name: str
    train: Split
    val: Split
    vocab_size: int
    corpus_sha256: str
    tokenizer_sha256: str
    embedded: bool
    entropy_rate_nats: float | None = None
    tokenizer_file: Path | None = None

    def training_batch(self, seed: int, step: int, batch_size: int, length: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets ``[batch_size, length]`` of one step: a function of the seed and the step alone."""
        high = len(self.train) - length
        if high <= 0:
            raise DataError(
                f"corpus {self.name}: the training split has {len(self.train)} tokens, fewer than one window of "
                f"{length + 1}; give a longer corpus or --set data.seq_len={max(len(self.train) // 2, 1)}"
            )
        # Philox is counter-based: any step's batch is reached without drawing the earlier ones
        generator = np.random.Generator(np.random.Philox(key=seed, counter=step << 64))
        starts = generator.integers(0, high, size=batch_size)
        index = starts[:, None] + np.arange(length + 1)
        window = np.asarray(self.train.tokens[index])
        return window[:, :-1], window[:, 1:]

    def validation_windows(self, length: int, max_windows: int) -> "Windows":
        """At most ``max_windows`` windows of the validation split, spread evenly; always the same ones."""
        return Windows.of(self.val, length, max_windows)


@dataclass(frozen=True)
class Windows:
    """Fixed windows of a split that never cross a document boundary.

    starts ``[n]`` first token of each window; documents ``[n]`` the document each window lies in.
    """

    split: Split
    length: int
    starts: NDArray[np.int64]
    documents: NDArray[np.int64]

    @classmethod
    def of(cls, split: Split, length: int, max_windows: int) -> "Windows":
        """All non-overlapping windows of ``length`` inputs and their next tokens, thinned evenly to ``max_windows``."""
        starts, documents = [], []
        for document, (begin, end) in enumerate(zip(split.offsets[:-1], split.offsets[1:], strict=True)):
            inside = np.arange(begin, end - length, length, dtype=np.int64)
            starts.append(inside)
            documents.append(np.full(len(inside), document, dtype=np.int64))
        all_starts = np.concatenate(starts) if starts else np.empty(0, np.int64)
        all_documents = np.concatenate(documents) if documents else np.empty(0, np.int64)
        if not len(all_starts):
            longest = int(np.diff(split.offsets).max(initial=0))
            raise DataError(
                f"no document of this split has a window of {length + 1} tokens; the longest has {longest}. "
                f"Give longer documents or --set data.seq_len={max(longest - 1, 1)}"
            )
        keep = np.linspace(0, len(all_starts) - 1, min(max_windows, len(all_starts))).round().astype(np.int64)
        return cls(split, length, all_starts[keep], all_documents[keep])

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_documents(self) -> int:
        """Documents the windows come from: the number of clusters of an interval."""
        return len(np.unique(self.documents))

    def batches(self, batch_size: int) -> Iterator[tuple[Tokens, Tokens, NDArray[np.int64]]]:
        """Inputs and targets ``[b, length]`` with the document of each row, in order."""
        for begin in range(0, len(self.starts), batch_size):
            rows = slice(begin, begin + batch_size)
            window = np.asarray(self.split.tokens[self.starts[rows, None] + np.arange(self.length + 1)])
            yield window[:, :-1], window[:, 1:], self.documents[rows]
