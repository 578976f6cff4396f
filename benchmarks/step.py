"""Milliseconds of one training step on a CPU: GF-MH and the pure models of the same size, in one interleaved run.

    python -m benchmarks.step [--rounds 30] [--threads 2]

A step is 512 tokens (2 x 256): forward, cross entropy, backward, clipping, fused AdamW. The models take turns inside
each round, so a noisy neighbour hits all of them; the ratios are medians of the per-round ratios.
"""

import argparse
import statistics
import time

import torch

import kernels
from models import NOMINAL_VOCAB_SIZE, get_model

MODELS = ("GPT2", "GF-MH", "RWKV6", "MAMBA2")
BATCH, LENGTH = 2, 256
WARMUP = 3


class Step:
    """One model with its optimizer; calling it trains one step and returns the milliseconds it took."""

    def __init__(self, name: str, scale: str) -> None:
        torch.manual_seed(0)
        self.model = get_model(name, scale)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.tokens_BT = torch.randint(0, NOMINAL_VOCAB_SIZE, (BATCH, LENGTH + 1))

    def __call__(self) -> float:
        begin = time.perf_counter()
        logits_BTV = self.model(self.tokens_BT[:, :-1])
        loss = kernels.cross_entropy(logits_BTV.flatten(0, 1), self.tokens_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return (time.perf_counter() - begin) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", default="3.5M")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    steps = {name: Step(name, options.scale) for name in MODELS}
    times: dict[str, list[float]] = {name: [] for name in MODELS}
    for round_index in range(WARMUP + options.rounds):
        for name, step in steps.items():
            elapsed_ms = step()
            if round_index >= WARMUP:
                times[name].append(elapsed_ms)

    backends = {op: choice["backend"] for op, choice in kernels.backends.describe("cpu").items()}
    print(f"{options.scale}, {BATCH}x{LENGTH} tokens, {options.threads} threads, {options.rounds} rounds, {backends}")
    for name in MODELS:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["GPT2"], strict=True))
        print(f"{name:8} {statistics.median(times[name]):8.1f} ms/step   {ratio:.2f} x GPT2")


if __name__ == "__main__":
    main()
