"""Padding and packing: which document each position of a batch belongs to, and documents as rows of their own.

A model reads packed text document by document: each becomes one row, real positions from the left, padding on the
right. So no document can see another, and a mixer needs to know nothing but the length of each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Documents of a batch ``[B,T]`` as R rows of L positions; n runs over the real positions of all of them.

    carries  the state that comes in belongs to them: they are the first documents, one for each row of the batch
    L        length of the longest, at least 1
    lengths  ``[R]``, real positions; 0 for a row of the batch that is padding only
    source   ``[n]``, where a position stands in the batch, ``row * T + column``
    target   ``[n]``, where it stands here, ``document * L + position``
    ended    rows of the batch that end in one of these documents
    ends     these documents, in the same order
    """

    carries: bool
    L: int
    lengths: Tensor
    source: Tensor
    target: Tensor
    ended: Tensor
    ends: Tensor

    def take(self, tokens_BT: Tensor) -> Tensor:
        """The tokens of the documents ``[R,L]``; padding is token 0."""
        tokens_RL = tokens_BT.new_zeros(len(self.lengths), self.L)
        tokens_RL.view(-1)[self.target] = tokens_BT.reshape(-1)[self.source]
        return tokens_RL

    def end_lengths(self) -> list[int]:
        """Real positions of the documents ``ends``."""
        lengths: list[int] = self.lengths[self.ends].tolist()
        return lengths


def split_documents(segments_BT: Tensor, shape: Sequence[int], carries: bool) -> list[Documents]:
    """The documents of a batch of tokens of ``shape``, in one piece.

    Where a state comes in (``carries``) in up to two pieces: the first document of each row, and all later ones, which
    start without it. Raises ``ValueError`` for malformed segments.
    """
    _check(segments_BT, shape)
    found = _find(segments_BT)
    first_R = torch.ones_like(found.row, dtype=torch.bool)
    first_R[1:] = found.row[1:] != found.row[:-1]
    last_R = first_R.roll(-1)
    if not carries:
        return [_choose(found, torch.ones_like(first_R), last_R, False)]
    pieces = [_choose(found, first_R, last_R, True)]
    return pieces if first_R.all() else [*pieces, _choose(found, ~first_R, last_R, False)]


@dataclass(frozen=True)
class _Found:
    """All R documents of a batch in reading order, and of each of their positions n: its source, document, place."""

    row: Tensor
    lengths: Tensor
    source: Tensor
    document: Tensor
    place: Tensor


def _find(segments_BT: Tensor) -> _Found:
    marked_BT = segments_BT.clone()
    # a row of padding only counts as one empty document, so that every row has a document that ends it
    marked_BT[:, 0] += (segments_BT == 0).all(dim=1)
    row_n, column_n = marked_BT.nonzero(as_tuple=True)
    id_n = marked_BT[row_n, column_n]
    begins_n = torch.ones_like(row_n, dtype=torch.bool)
    begins_n[1:] = (row_n[1:] != row_n[:-1]) | (id_n[1:] != id_n[:-1])
    begins_R = begins_n.nonzero().squeeze(1)
    _check_documents(row_n[begins_R], id_n[begins_R])
    document_n = begins_n.cumsum(0) - 1
    place_n = torch.arange(len(row_n), device=row_n.device) - begins_R[document_n]
    real_n = segments_BT[row_n, column_n] > 0
    return _Found(
        row=row_n[begins_R],
        lengths=torch.zeros_like(begins_R).index_add_(0, document_n, real_n.long()),
        source=(row_n * segments_BT.shape[1] + column_n)[real_n],
        document=document_n[real_n],
        place=place_n[real_n],
    )


def _choose(found: _Found, chosen_R: Tensor, last_R: Tensor, carries: bool) -> Documents:
    index_R = chosen_R.cumsum(0) - 1  # of a document among the chosen ones
    chosen_n = chosen_R[found.document]
    lengths_R = found.lengths[chosen_R]
    L = max(1, int(lengths_R.max()))
    return Documents(
        carries=carries,
        L=L,
        lengths=lengths_R,
        source=found.source[chosen_n],
        target=(index_R[found.document] * L + found.place)[chosen_n],
        ended=found.row[chosen_R & last_R],
        ends=index_R[chosen_R & last_R],
    )


def join_positions(pieces: Sequence[Documents], tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Per-position tensors ``[R,L,...]`` of the pieces back in the batch ``[B,T,...]``; zero at padding."""
    B, T = shape
    joined = tensors[0].new_zeros(B * T, *tensors[0].shape[2:])
    for piece, tensor in zip(pieces, tensors, strict=True):
        joined = joined.index_copy(0, piece.source, tensor.flatten(0, 1).index_select(0, piece.target))
    return joined.view(B, T, *joined.shape[1:])


def join_ends(pieces: Sequence[Documents], tensors: Sequence[Tensor]) -> Tensor:
    """Per-document tensors ``[R,...]`` of the pieces: those of the document that ends each row, ``[B,...]``."""
    ends = [tensor.index_select(0, piece.ends) for piece, tensor in zip(pieces, tensors, strict=True)]
    order_B = torch.cat([piece.ended for piece in pieces]).argsort()
    return torch.cat(ends).index_select(0, order_B)


def _check(segments_BT: Tensor, shape: Sequence[int]) -> None:
    if segments_BT.shape != torch.Size(shape):
        raise ValueError(
            f"segments have shape {list(segments_BT.shape)}; they must be {list(shape)}, one number a token"
        )
    if segments_BT.dtype != torch.int64:
        dtype = str(segments_BT.dtype).removeprefix("torch.")
        raise ValueError(f"segments are {dtype}; they must be int64: 0 for padding, else the number of the document")
    if segments_BT.min() < 0:
        row, column = (segments_BT < 0).nonzero()[0].tolist()
        raise ValueError(
            f"segments hold {int(segments_BT[row, column])} in row {row} at position {column}; "
            "they must be 0 for padding or the positive number of a document"
        )


def _check_documents(row_R: Tensor, id_R: Tensor) -> None:
    """Runs of one row must differ in their number, or a document would come back after another one."""
    runs, counts = torch.unique(torch.stack((row_R, id_R)), dim=1, return_counts=True)
    if (counts > 1).any():
        row, document = runs[:, counts > 1][:, 0].tolist()
        raise ValueError(
            f"document {document} comes back after another one in row {row} of the segments; "
            "the positions of a document must follow each other, with nothing but padding between them"
        )
