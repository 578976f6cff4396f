"""Are two sets of states alike up to a rotation? Debiased linear CKA, with its permutation null."""

import math

import numpy as np
import torch
from torch import Tensor

MIN_TEXTS = 4
"""The debiased estimate divides by n - 3."""


def gram(states: Tensor) -> Tensor:
    """Inner products of the states of n texts, ``[n, ...] -> [n, n]`` fp64: all that linear CKA sees of them."""
    flat_nE = states.detach().flatten(1).double()
    gram_nn: Tensor = flat_nE @ flat_nE.T
    return gram_nn


def _centred(gram_nn: Tensor) -> Tensor:
    """U-centring of a Gram matrix: its diagonal is left out and the means are corrected for that (Szekely & Rizzo)."""
    n = len(gram_nn)
    assert n >= MIN_TEXTS, f"{n} texts are too few"
    held_nn = gram_nn - torch.diag(gram_nn.diagonal())
    rows_n = held_nn.sum(1) / (n - 2)
    centred_nn = held_nn - rows_n[:, None] - rows_n[None] + held_nn.sum() / ((n - 1) * (n - 2))
    return centred_nn - torch.diag(centred_nn.diagonal())


def debiased_cka(first_nn: Tensor, second_nn: Tensor) -> float:
    r"""Debiased linear CKA of two Gram matrices over the same n texts, unit 1, at most 1.

        <K~, L~> / (||K~|| ||L~||),    K~ the U-centred Gram matrix

    1 for states that a rotation and a scale turn into each other, 0 in expectation for independent ones, whatever their
    width; the biased form gives .99 there (n = 64, thousands of entries). NaN when one set does not vary.
    Source  Kornblith et al., arXiv:1905.00414, with the unbiased HSIC of Song et al. 2012; debiasing: arXiv:2405.01012.
    """
    return _cosine(_centred(first_nn), _centred(second_nn))


def biased_cka(first_nn: Tensor, second_nn: Tensor) -> float:
    """The form in common use, for the pitfall: near 1 for independent states wider than there are texts."""
    n = len(first_nn)
    centre_nn = torch.eye(n, dtype=torch.float64) - 1 / n
    return _cosine(centre_nn @ first_nn @ centre_nn, centre_nn @ second_nn @ centre_nn)


def permutation_null(first_nn: Tensor, second_nn: Tensor, *, seed: int, draws: int = 200, level: float = 0.95) -> float:
    """The ``level`` quantile of debiased CKA when the texts of one side are shuffled: what unrelated states reach."""
    generator = np.random.default_rng(seed)
    left_nn, right_nn = _centred(first_nn), _centred(second_nn)
    values = []
    for _ in range(draws):
        order = torch.from_numpy(generator.permutation(len(right_nn)))
        values.append(_cosine(left_nn, right_nn[order][:, order]))
    return float(np.quantile(values, level))


def _cosine(a_nn: Tensor, b_nn: Tensor) -> float:
    size = float(a_nn.norm() * b_nn.norm())
    return float((a_nn * b_nn).sum()) / size if size > 0 else math.nan
