"""What looking on costs a training: seconds a step with every monitor over seconds a step with none.

    python -m benchmarks.monitors [--model GF-MH] [--pairs 8] [--steps 100] [--every N] [--store DIR]

Trainings with and without monitors take turns in one process, the order changing from pair to pair, so that a noisy
neighbour or a drift of the clock hits both. With: probes, stopping criteria, gradient norms and update ratios by
branch, on the default schedule. Without: none of it. Validation and checkpoints are left out of both. The overhead is
the mean over pairs with Student's 90 % interval; the shares of its parts are medians.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fixtures.bench import Bench
from fixtures.presets import load_preset
from fixtures.training import state_probe, stop_monitors
from harness.data import TokenDataset
from harness.events import Event
from harness.metrics.intervals import t_interval
from harness.runtime import seeded
from harness.train import train
from models import get_model

SCALE = "3.5M"


class Clock:
    """A progress that measures from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def begin(self, total: int, done: int) -> None:
        """Nothing: the first step also pays for what is made once."""

    def update(self, step: int, note: str) -> None:
        """A step is done."""
        self.last = time.perf_counter()
        if step == 1:
            self.first = self.last

    def end(self) -> None:
        """Nothing."""


class Timed:
    """A monitor or a probe, and the seconds of each call."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds: list[float] = []

    def __call__(self, model: nn.Module) -> Mapping[str, Any]:
        """The probe."""
        begin = time.perf_counter()
        row: Mapping[str, Any] = self.inner(model)
        self.seconds.append(time.perf_counter() - begin)
        return row

    def observe(self, row: Mapping[str, Any]) -> list[Event]:
        """The monitor."""
        begin = time.perf_counter()
        events: list[Event] = self.inner.observe(row)
        self.seconds.append(time.perf_counter() - begin)
        return events

    def state_dict(self) -> dict[str, Any]:
        """As the monitor's."""
        return dict(self.inner.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the monitor's."""
        self.inner.load_state_dict(state)


def measure(name: str, dataset: TokenDataset, options: argparse.Namespace, *, watched: bool) -> dict[str, float]:
    """Milliseconds a step of one training, and those in its probe and its criteria."""
    # one step more, so that the probe after the last measured one lies inside
    steps = options.steps + 1
    keys = {
        "train.steps": steps, "train.warmup_steps": 0, "train.decay_fraction": 0, "train.save_every": 10 * steps,
        "train.checkpoint_steps": [], "eval.every_steps": 10 * steps, "eval.tokens": 512, "eval.final_tokens": 512,
        "train.threads": options.threads,
    }  # fmt: skip
    if not watched:
        keys["monitors.update_every"] = 10 * steps
    elif options.every:
        keys["monitors.probe_every"] = options.every
    config = load_preset(SCALE, [f"{key}={value}" for key, value in keys.items()])
    with seeded(0):
        model = get_model(name, SCALE, config.data.vocab_size)
    clock, probe, monitors = Clock(), state_probe(model, dataset, config, "cpu"), [Timed(stop_monitors())]
    timed = Timed(probe)
    if not watched:
        # nothing is measured by branch where no branch is named
        model.branch_modules = dict
    with tempfile.TemporaryDirectory() as directory:
        train(
            model, dataset, config, Path(directory), seed=0, device="cpu", progress=clock,
            probe=timed if watched and probe is not None else None, monitors=monitors if watched else (),
        )  # fmt: skip
    # the last probe comes after the last step, where the clock no longer runs
    parts = {"step": clock.last - clock.first, "probe": sum(timed.seconds[:-1]), "criteria": sum(monitors[0].seconds)}
    return {part: 1e3 * seconds / options.steps for part, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="GF-MH")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100, help="measured steps of each training")
    parser.add_argument("--every", type=int, help="steps between probes (default: the preset's)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, default=Path(".groundthink"), help="where the tokenised corpus is kept")
    options = parser.parse_args()
    bench = Bench.of(model=options.model, scale=SCALE, device="cpu", seeds=(0,), store=options.store)
    with_ms, without_ms = [], []
    for pair in range(options.pairs):
        for watched in (pair % 2 == 0, pair % 2 == 1):
            found = measure(options.model, bench.dataset, options, watched=watched)
            (with_ms if watched else without_ms).append(found)
    overheads = [100 * (one["step"] / other["step"] - 1) for one, other in zip(with_ms, without_ms, strict=True)]
    overhead = t_interval(overheads)
    base = statistics.median(found["step"] for found in without_ms)
    print(f"{options.model}, {SCALE}, {options.threads} threads, {options.pairs} pairs of {options.steps} steps")
    print(f"without {base:.1f} ms a step; overhead {overhead.value:+.2f} % [{overhead.low:+.2f}, {overhead.high:+.2f}]")
    for part in ("probe", "criteria"):
        spent = statistics.median(found[part] for found in with_ms)
        print(f"{part:10} {100 * spent / base:5.2f} %")


if __name__ == "__main__":
    main()
