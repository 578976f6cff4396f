"""Known answers of STOP: simulated trainings, healthy and with planted faults."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from harness import monitors
from harness.events import Event
from harness.known_answers import known_answer

Row = dict[str, Any]

# The limits of the planted cases, which are part of their construction; trainings are judged by thresholds.toml
PLANTED_LIMITS = monitors.StopLimits(
    overfit_alert=0.05,
    overfit_stop=0.10,
    lr_drop_gain=2.0,
    oscillation=0.5,
    spike_mads=6.0,
    spike_nats=0.2,
    spike_ratio=2.0,
    write_sensitivity=0.01,
    dead_channels=0.3,
    info_share=0.05,
    gradient_ratio=(0.1, 10.0),
)
EVAL_EVERY = 50


def healthy_curve(step: int) -> float:
    """Loss of a small language model on text, nats a token: from 9.7 at the start to about 6.1 after 1000 steps."""
    return 5.6 + 4.1 / math.sqrt(1 + step / 15)


def simulated_rows(seed: int, steps: int = 1000, change: Callable[[Row], None] | None = None) -> Iterator[Row]:
    """Rows of a training whose loss decays under AR(1) noise: .15 nat a step, .02 nat an eval. ``change`` edits rows.

    The size of the noise is that of a 3.5M model at 512 tokens a step.
    """
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal(steps + 1) * 0.15 * math.sqrt(1 - 0.3**2)
    evals = rng.standard_normal(steps // EVAL_EVERY + 1) * 0.02
    noise = 0.0
    for step in range(steps + 1):
        rows: list[Row] = []
        if step:
            noise = 0.3 * noise + float(shocks[step])
            lr = 2e-3 * min(step / 50, 1, (steps - step) / (0.2 * steps) + 0.1)
            norms = {"grad_norm": 1.0, "grad_norm_rwkv": 0.25, "grad_norm_mamba": 1.0}
            rows.append({"kind": "step", "step": step, "loss": healthy_curve(step) + noise, "lr": lr, **norms})
        if step % EVAL_EVERY == 0:
            val_loss = healthy_curve(step) + 0.1 + float(evals[step // EVAL_EVERY])
            rows.append({"kind": "eval", "step": step, "val_loss": val_loss, "val_se": 0.02})
        for row in rows:
            if change is not None:
                change(row)
            yield row


def watch(rows: Iterator[Row], schedule: monitors.Schedule = "warmup-stable-decay") -> list[Event]:
    """Every event of all criteria over the rows of one training."""
    watching = monitors.StopMonitors(PLANTED_LIMITS, schedule)
    return [event for row in rows for event in watching.observe(row)]


def stops(events: list[Event]) -> dict[str, int]:
    """Criteria that said STOP, with the step of the first time."""
    return {event.criterion: event.step for event in reversed(events) if event.kind == "STOP"}


@known_answer("STOP")
def a_healthy_training_is_left_alone() -> None:
    """Negative control: 400 steps of decaying, noisy loss bring no STOP."""
    found = stops(watch(simulated_rows(seed=20, steps=400)))
    assert not found, f"a healthy training was stopped: {found}"


@known_answer("STOP")
def rising_validation_loss_is_caught_in_three_evals() -> None:
    """Raise validation loss by 15 % from step 300 while train loss falls on: STOP at the third eval from there."""

    def diverge(row: Row) -> None:
        if row["kind"] == "eval" and row["step"] >= 300:
            row["val_loss"] *= 1.15

    found = stops(watch(simulated_rows(seed=21, steps=500, change=diverge)))
    assert found == {"overfit": 300 + 2 * EVAL_EVERY}, f"expected overfit at step 400 alone, got {found}"


@known_answer("STOP")
def a_spike_stops_only_if_it_stays() -> None:
    """Loss trebled for good is a STOP after 200 steps; for 20 steps it is an ALERT."""

    def explode(row: Row, until: int) -> None:
        if row["kind"] == "step" and 150 <= row["step"] < until:
            row["loss"] *= 3

    for until, expected in ((400, {"spike": 350}), (170, {})):
        events = watch(simulated_rows(seed=22, steps=400, change=partial(explode, until=until)))
        assert stops(events) == expected, f"loss trebled in 150 .. {until}: expected {expected}, got {stops(events)}"
        alerts = [event.step for event in events if event.criterion == "spike" and event.kind == "ALERT"]
        assert alerts == [150], f"loss trebled from step 150: expected one alert there, got {alerts}"


@known_answer("STOP")
def swings_are_told_from_noise() -> None:
    """Swings of 1.2 nats with a period of 100 steps are a STOP; noise of the same size from step to step is none."""

    def swing(row: Row) -> None:
        if row["kind"] == "step":
            row["loss"] += 0.6 * math.sin(2 * math.pi * row["step"] / 100)

    def shake(row: Row) -> None:
        if row["kind"] == "step":
            row["loss"] += 0.6 * (-1) ** row["step"]

    found = stops(watch(simulated_rows(seed=23, steps=400, change=swing)))
    assert list(found) == ["oscillation"], f"expected oscillation alone, got {found}"
    found = stops(watch(simulated_rows(seed=23, steps=400, change=shake)))
    assert not found, f"noise from step to step is no oscillation, got {found}"


@known_answer("STOP")
def a_number_that_is_none_stops() -> None:
    """NaN in the loss, infinity in the gradient norm or NaN in validation stop at once."""
    for key, kind, value in (
        ("loss", "step", math.nan),
        ("grad_norm", "step", math.inf),
        ("val_loss", "eval", math.nan),
    ):

        def poison(row: Row, key: str = key, kind: str = kind, value: float = value) -> None:
            if row["kind"] == kind and row["step"] == 50:
                row[key] = value

        found = stops(watch(simulated_rows(seed=24, steps=100, change=poison)))
        assert found == {"non_finite": 50}, f"{key} = {value} at step 50: got {found}"


@known_answer("STOP")
def probes_reveal_collapse_and_death() -> None:
    """Collapse is a branch whose writes do not depend on the input; death is one that nothing misses."""
    alive = {"rho_rwkv": 0.4, "dead_rwkv": 0.02, "rho_mamba": 0.3, "dead_mamba": 0.0}
    used = {"delta_loss_low_mamba": 0.004, "delta_loss_high_mamba": 0.02, "info_share_mamba": 0.3}
    unused = {"delta_loss_low_mamba": -0.002, "delta_loss_high_mamba": 0.002, "info_share_mamba": 0.01}
    cases: tuple[tuple[Row, dict[str, int]], ...] = (
        ({**alive, **used}, {}),
        ({**alive, "rho_mamba": 0.001}, {"collapse": 100}),
        ({**alive, "rho_rwkv": math.nan}, {"collapse": 100}),
        ({**alive, "dead_rwkv": 0.5}, {"collapse": 100}),
        ({**alive, **unused}, {"dead_branch": 200}),
    )
    for measured, expected in cases:
        found = stops(watch({"kind": "probe", "step": step, **measured} for step in (0, 100, 200, 300)))
        assert found == expected, f"{measured}: expected {expected}, got {found}"
