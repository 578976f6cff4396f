"""Known answers of the count of operations: products, scans and attention of known size."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from harness.flops import FlopsError, count_flops, training_flops_per_token
from harness.known_answers import known_answer
from harness.metrics.expect import expect


class _Model(nn.Module):
    """Embedding, one mixer of width 8, head."""

    def __init__(self, mixer: str) -> None:
        super().__init__()
        self.mixer, self.embedding, self.head = mixer, nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits ``[B,T,10]``."""
        x_BTD = self.embedding(tokens_BT)
        heads_BTHK = x_BTD[:, :, None]
        if self.mixer == "wkv6":
            x_BTD = kernels.wkv6(heads_BTHK, heads_BTHK, heads_BTHK, -heads_BTHK.abs(), x_BTD[0, :1])[0].flatten(2)
        elif self.mixer == "attention":
            x_BTD = F.scaled_dot_product_attention(x_BTD, x_BTD, x_BTD, is_causal=True)
        logits_BTV: Tensor = self.head(x_BTD)
        return logits_BTV


@known_answer("CER")
def every_operation_is_counted_once() -> None:
    """A head of 8 x 10 is 160 a token, forward, and 480 in training; a scan and attention add their own."""
    expect("head alone", count_flops(_Model("none"), 2, 4).by_operation["aten.mm"], 160.0)
    expect("training", training_flops_per_token(_Model("none"), 2, 4), 480.0)
    scan = count_flops(_Model("wkv6"), 2, 4).by_operation
    expect("wkv6 of one head of 8", scan["wkv6"], 5 * 64 + 5 * 8)
    expect("the head beside it", scan["aten.mm"], 160.0)
    # 10 pairs of 4 tokens, two products of 8 multiply-adds
    expect("causal attention over 4", count_flops(_Model("attention"), 2, 4).by_operation["attention"], 10 * 32 / 4)
    longer = count_flops(_Model("attention"), 1, 8).by_operation["attention"]
    expect("over 8: attention grows with the length", longer, 36 * 32 / 8)
    expect("a scan does not (negative control)", count_flops(_Model("wkv6"), 1, 8).by_operation["wkv6"], scan["wkv6"])


@known_answer("CER")
def what_cannot_be_seen_is_refused() -> None:
    """A model without a single operation in sight has no count of 0."""

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, tokens_BT: Tensor) -> Tensor:
            return tokens_BT[..., None] * self.weight

    refused = False
    try:
        count_flops(Silent(), 1, 4)
    except FlopsError:
        refused = True
    assert refused, "a model that shows no operation was counted as free"
