"""Numbers of fused passes beside plain ones, as JSON. A program: torch.compile cannot trace the checks of shapes."""

import json
import sys

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from conftest import awake
from kernels import backends

# the traces and graphs that inductor gets, without the code that it makes of them
COMPILER = "aot_eager"


def loss_and_gradients(model: nn.Module, forward, tokens_BT: Tensor, bf16: bool):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits_BTV = forward(tokens_BT)
    logits_NV = logits_BTV.to(model.embedding.weight.dtype).flatten(0, 1)
    F.cross_entropy(logits_NV, tokens_BT.roll(-1, 1).flatten()).backward()
    return logits_BTV.detach().double(), {name: p.grad.double().clone() for name, p in model.named_parameters()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def beside(name: str, *, bf16: bool) -> dict[str, float]:
    """Relative differences of a fused pass from the plain one: logits, and the worst of the gradients."""
    model = awake(name, double=not bf16)
    tokens_BT = torch.randint(0, 512, (2, 19), generator=torch.Generator().manual_seed(1))
    graphs, calls = counters["stats"]["unique_graphs"], backends.calls.total()
    fused = loss_and_gradients(model, model.capturable_forward(COMPILER), tokens_BT, bf16)
    graphs, calls = counters["stats"]["unique_graphs"] - graphs, backends.calls.total() - calls
    plain = loss_and_gradients(model, model, tokens_BT, bf16)
    exact = loss_and_gradients(model, model, tokens_BT, bf16=False)
    return {
        "logits": relative(fused[0], plain[0]),
        "gradients": max(relative(fused[1][key], plain[1][key]) for key in plain[1]),
        "from_exact": relative(fused[0], exact[0]),
        "plain_from_exact": relative(plain[0], exact[0]),
        "graphs": graphs,
        "kinds_of_layers": len({tuple(layer.mixers) for layer in model.layers}),
        "calls": calls,
    }


def refused(name: str, context) -> str:
    """What a compiled pass says inside ``context``."""
    model = awake(name)
    forward = model.capturable_forward(COMPILER)
    try:
        with context:
            forward(torch.zeros(1, 4, dtype=torch.int64))
    except Exception as error:  # noqa: BLE001 (whatever the compiler makes of ours)
        return str(error)
    return "nothing"


def main() -> None:
    numbers = {
        "double": {name: beside(name, bf16=False) for name in ("GF-MH", "HGF", "CP", "SEQ-4R10M", "GPT2")},
        "bf16": {name: beside(name, bf16=True) for name in ("HGF", "GF-MH")},
        "forced": refused("RWKV6", backends.force("wkv6", "chunked")),
        "wrapped": refused("MAMBA2", backends.wrap("ssd", lambda kernel: kernel)),
    }
    sys.stdout.write(json.dumps(numbers))


if __name__ == "__main__":
    main()
