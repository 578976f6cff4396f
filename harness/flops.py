"""Floating-point operations of a training, counted operation by operation.

Counted are matrix products, convolutions, attention and scans, with two operations a multiply-add. Norms, activations,
the loss, table look-ups and the optimiser are not: they take time, and next to no operations.

The harness's own kernels and attention are counted by what they define, not by how a backend computes it: a chunked
scan does other work than a sequential one, and a model must not cost more on one machine than on another. Inside the
count they return zeros, so nothing may be read off the logits. A user's model whose operations live in kernels of its
own is counted too low: nothing here sees them.

Source  torch.utils.flop_counter for the products; the recurrences as in arXiv:2404.05892, section 4.2, and
arXiv:2405.21060, section 3; backward = 2 x forward as in Kaplan et al., arXiv:2001.08361, section 2.1.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import HarnessError
from kernels import backends

BACKWARD_OVER_FORWARD = 2
"""Every product has two in its backward pass, one for each factor; the same is taken for scans."""

MULTIPLY_ADD = 2

_UNCOUNTED = "selective_scan"


class FlopsError(HarnessError):
    """The operations of a model cannot be counted. The message says which."""


@dataclass(frozen=True)
class Flops:
    """Operations a token.

    by_operation  of a forward pass: ``aten.mm`` and the like, ``wkv6``, ``ssd``, ``causal_conv1d``, ``attention``
    batch_size, seq_len  shape of the batch that was counted: attention grows with its length, nothing else does
    """

    by_operation: Mapping[str, float]
    batch_size: int
    seq_len: int

    @property
    def forward(self) -> float:
        """Of a forward pass."""
        return sum(self.by_operation.values())

    @property
    def training(self) -> float:
        """Of a forward and a backward pass."""
        return (1 + BACKWARD_OVER_FORWARD) * self.forward


def training_flops_per_token(model: nn.Module, batch_size: int, seq_len: int) -> float:
    """Operations of a forward and a backward pass, a token: see ``count_flops``."""
    return count_flops(model, batch_size, seq_len).training


def count_flops(model: nn.Module, batch_size: int, seq_len: int) -> Flops:
    """Count a forward pass over ``batch_size`` rows of ``seq_len`` tokens, on the model's device; its mode is kept.

    Raises ``FlopsError`` for a model that uses ``kernels.selective_scan``, or in which there is nothing to count.
    """
    assert batch_size > 0
    assert seq_len > 0
    tokens_BT = torch.zeros(batch_size, seq_len, dtype=torch.int64, device=next(model.parameters()).device)
    by_formula: Counter[str] = Counter()
    before = sum(n for (op, _), n in backends.calls.items() if op == _UNCOUNTED)
    products = FlopCounterMode(display=False)
    # not inference_mode: there the counter would have to take composed operations apart
    with torch.no_grad(), _by_formula(by_formula), products:
        model(tokens_BT)
    if sum(n for (op, _), n in backends.calls.items() if op == _UNCOUNTED) > before:
        raise FlopsError(
            f"{type(model).__name__} calls kernels.{_UNCOUNTED}, which has no backend but the reference, so its "
            "operations cannot be counted by formula\n  next  use kernels.ssd, or leave this model out of comparisons "
            "of compute"
        )
    by_operation = {str(op): count for op, count in products.get_flop_counts().get("Global", {}).items()}
    tokens = batch_size * seq_len
    total = {op: count / tokens for op, count in (*by_operation.items(), *by_formula.items())}
    if not sum(total.values()):
        raise FlopsError(
            f"{type(model).__name__}: no operation was seen in its forward pass, only kernels of its own perhaps\n"
            "  next  compute its products with PyTorch or with this project's kernels"
        )
    return Flops(dict(sorted(total.items())), batch_size, seq_len)


def wkv6_flops(batch: int, length: int, heads: int, keys: int, values: int) -> int:
    """``S <- diag(w) S + k^T v`` (3 K V), ``r S`` (2 K V), the bonus ``(r u k) v`` (3 K + 2 V), a head and token."""
    return batch * length * heads * (5 * keys * values + 3 * keys + 2 * values)


def ssd_flops(batch: int, length: int, heads: int, width: int, state: int) -> int:
    """``S <- a S + (dt x) B^T`` (3 P N + P) and ``S C`` (2 P N), a head and token."""
    return batch * length * heads * (5 * width * state + width)


def causal_conv1d_flops(batch: int, length: int, channels: int, taps: int) -> int:
    """One multiply-add a tap, a channel and token."""
    return MULTIPLY_ADD * batch * length * channels * taps


def attention_flops(query_BHTP: Sequence[int], key_BHSP: Sequence[int], value_width: int, is_causal: bool) -> int:
    """``q k^T`` and ``a v`` over the pairs that are looked at: T (T + 1) / 2 of them in a causal pass, else T S.

    ``is_causal`` lines up the first query with the first key, as PyTorch does. Source: Vaswani et al.,
    arXiv:1706.03762, section 3.2.1.
    """
    *rows, length, width = query_BHTP
    keys = key_BHSP[-2]
    overlap = min(length, keys)
    pairs = overlap * (overlap + 1) // 2 + max(length - keys, 0) * keys if is_causal else length * keys
    count = 1
    for size in rows:
        count *= size
    return MULTIPLY_ADD * count * pairs * (width + value_width)


def _wkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, initial: Tensor) -> tuple[int, Any]:
    B, T, H, K = r.shape
    return wkv6_flops(B, T, H, K, v.shape[-1]), (torch.zeros_like(v), torch.zeros_like(initial))


def _ssd(x: Tensor, dt: Tensor, A: Tensor, B_: Tensor, C: Tensor, initial: Tensor) -> tuple[int, Any]:
    B, T, H, P = x.shape
    return ssd_flops(B, T, H, P, B_.shape[-1]), (torch.zeros_like(x), torch.zeros_like(initial))


def _conv(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, activation: str | None) -> tuple[int, Any]:
    B, T, C = x.shape
    return causal_conv1d_flops(B, T, C, weight.shape[1]), (torch.zeros_like(x), torch.zeros_like(initial))


# operation -> a backend to stand in for (the reference cannot be replaced), and its count and output
_FORMULAS: Mapping[str, tuple[str, Callable[..., tuple[int, Any]]]] = {
    "wkv6": ("chunked", _wkv6),
    "ssd": ("chunked", _ssd),
    "causal_conv1d": ("shifted", _conv),
}


@contextmanager
def _by_formula(counts: Counter[str]) -> Iterator[None]:
    """Count the kernels and attention by formula, add it to ``counts``, and compute none of them."""

    def counting(op: str, formula: Callable[..., tuple[int, Any]]) -> Callable[..., Any]:
        def instead(*inputs: Any) -> Any:
            count, output = formula(*inputs)
            counts[op] += count
            return output

        return lambda _: instead

    with ExitStack() as stack:
        for op, (backend, formula) in _FORMULAS.items():
            stack.enter_context(backends.force(op, backend))
            stack.enter_context(backends.wrap(op, counting(op, formula)))
        stack.enter_context(_Attention(counts))
        yield


class _Attention(TorchFunctionMode):
    """Counts scaled dot-product attention, of which PyTorch's counter knows some kernels only and no causal half."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given |= dict(zip(names, args, strict=False))
        query, key, value = (given[name] for name in names[:3])
        self.counts["attention"] += attention_flops(
            query.shape, key.shape, value.shape[-1], bool(given.get("is_causal", False))
        )
        return query.new_zeros(*query.shape[:-1], value.shape[-1])
