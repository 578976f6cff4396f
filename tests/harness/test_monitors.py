import json
import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from harness import known_answers_stop as kat
from harness.errors import HarnessError
from harness.monitors import StopLimits, StopMonitors
from harness.monitors.loss import count_reversals, detrend_falling, precise_block_means
from harness.thresholds import Bands, load_thresholds

LIMITS = kat.PLANTED_LIMITS


def monitors(schedule="warmup-stable-decay"):
    return StopMonitors(LIMITS, schedule)


def edited(field, function, kind):
    def change(row):
        if row["kind"] == kind:
            row[field] = function(row["step"], row[field])

    return change


def found(change, seed=70, steps=1000):
    return kat.watch(kat.simulated_rows(seed, steps, change))


def kinds(events, criterion):
    return [(event.kind, event.step) for event in events if event.criterion == criterion]


def false_stops(runs, first_seed):
    return sum(bool(kat.stops(kat.watch(kat.simulated_rows(first_seed + run)))) for run in range(runs))


def test_a_hundred_healthy_trainings_are_left_alone():
    assert false_stops(100, first_seed=1000) <= 1


@pytest.mark.slow
def test_at_most_one_healthy_training_in_a_hundred_is_stopped():
    assert false_stops(1000, first_seed=5000) <= 10


# --- overfit


@pytest.mark.parametrize("seed", range(5))
def test_diverging_validation_is_stopped_within_three_evals(seed):
    events = found(edited("val_loss", lambda step, loss: loss * (1.15 if step >= 500 else 1), "eval"), seed)

    assert kinds(events, "overfit") == [("STOP", 600)]


def test_a_moderate_rise_is_an_alert_only():
    events = found(edited("val_loss", lambda step, loss: loss * (1.08 if step >= 500 else 1), "eval"))

    assert kinds(events, "overfit") == [("ALERT", 600)]


def test_a_rise_that_does_not_persist_is_nothing():
    events = found(edited("val_loss", lambda step, loss: loss * (1.3 if step in (500, 550) else 1), "eval"))

    assert kinds(events, "overfit") == []


def test_validation_that_rises_with_train_loss_is_no_overfit():
    """A stop needs train loss to fall; when both rise the run is in trouble, but not that one."""

    def climb(row):
        if row["step"] >= 500:
            for key in ("loss", "val_loss"):
                if key in row:
                    row[key] *= 1 + 0.0015 * (row["step"] - 500)

    assert ("ALERT", 650) in kinds(found(climb), "overfit")
    assert "overfit" not in kat.stops(found(climb))


def test_train_loss_that_falls_with_the_learning_rate_is_no_evidence():
    """Under a rate that changes at every step there is no like with like, so the criterion stays at ALERT."""

    def cosine(row):
        if row["kind"] == "step":
            row["lr"] = 1e-3 * (1 + math.cos(math.pi * row["step"] / 1000))
        elif row["step"] >= 500:
            row["val_loss"] *= 1.15

    assert kinds(found(cosine), "overfit") == [("ALERT", 600)]


# --- spike


def test_a_spike_that_stays_is_stopped_after_two_hundred_steps():
    events = found(edited("loss", lambda step, loss: loss * (3 if step >= 400 else 1), "step"))

    assert kinds(events, "spike") == [("ALERT", 400), ("STOP", 600)]


def test_a_spike_below_twice_the_median_is_an_alert_only():
    events = found(edited("loss", lambda step, loss: loss + (2 if step >= 400 else 0), "step"))

    assert kinds(events, "spike") == [("ALERT", 400)]


def test_each_of_two_spikes_is_reported_once():
    events = found(edited("loss", lambda step, loss: loss + (2 if step in (400, 401, 402, 600) else 0), "step"))

    assert kinds(events, "spike") == [("ALERT", 400), ("ALERT", 600)]


# --- oscillation


def test_swings_are_stopped_and_noise_of_that_size_is_not():
    swing = found(edited("loss", lambda step, loss: loss + 0.5 * math.sin(2 * math.pi * step / 150), "step"))
    noise = found(edited("loss", lambda step, loss: loss + 0.5 * (-1) ** step, "step"))

    assert [kind for kind, _ in kinds(swing, "oscillation")] == ["STOP"]
    assert kinds(noise, "oscillation") == []


def test_swings_below_the_limit_are_nothing():
    swing = found(edited("loss", lambda step, loss: loss + 0.15 * math.sin(2 * math.pi * step / 150), "step"))

    assert kinds(swing, "oscillation") == []


def test_a_steep_start_is_no_oscillation():
    fall = found(edited("loss", lambda step, loss: loss + 6 * math.exp(-step / 40), "step"))

    assert kinds(fall, "oscillation") == []


def test_the_falling_curve_is_that_of_isotonic_regression():
    values = np.cumsum(np.random.default_rng(71).standard_normal(60))

    expected = values - isotonic_regression(values, increasing=False).x

    np.testing.assert_allclose(detrend_falling(values), expected, atol=1e-12)
    np.testing.assert_allclose(detrend_falling(np.arange(9.0)[::-1]), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "reversals"),
    [
        ([0, 1, 2, 3], 0),
        ([0, 1, 0, 1, 0], 3),
        ([0, 0.4, 0, 0.4, 0], 0),
        ([0, 1, 0.6, 1.2, 0.2, 0.5, 1.1], 2),
        ([1, 0, 1], 1),
    ],
)
def test_reversals_are_counted_between_swings_of_size(values, reversals):
    assert count_reversals(np.array(values, dtype=float), 0.5) == reversals


def test_blocks_lengthen_until_their_means_are_precise():
    rng = np.random.default_rng(72)

    assert len(precise_block_means(0.05 * rng.standard_normal(400))) == 80
    assert len(precise_block_means(0.15 * rng.standard_normal(400))) == 40
    assert precise_block_means(2.0 * rng.standard_normal(400)) is None


# --- learning-rate drops


def plateau_rows(gain_per_drop):
    """Steps of 100 at halving rates; validation loss improves by the gain at each drop."""
    for step in range(1, 501):
        drops = (step - 1) // 100
        yield {"kind": "step", "step": step, "loss": 6.0, "lr": 1e-3 * 0.5**drops, "grad_norm": 1.0}
        if step % 20 == 0:
            yield {"kind": "eval", "step": step, "val_loss": 6.0 - gain_per_drop * drops, "val_se": 0.02}


def test_two_drops_without_gain_are_stopped_and_with_gain_are_not():
    # the second drop comes at step 201; the third eval from there is at 260
    stopped = kat.watch(plateau_rows(0.0), "plateau")
    assert kinds(stopped, "lr_drops")[0] == ("STOP", 260)

    assert kinds(kat.watch(plateau_rows(0.05), "plateau"), "lr_drops") == []


def test_learning_rate_drops_do_not_apply_where_the_schedule_decays_anyway():
    watching = monitors()

    assert "warmup-stable-decay" in watching.not_applicable["lr_drops"]
    assert monitors("plateau").not_applicable == {}
    assert kinds(kat.watch(plateau_rows(0.0), "cosine"), "lr_drops") == []


def test_drops_are_judged_in_standard_errors_or_not_at_all():
    rows = ({k: v for k, v in row.items() if k != "val_se"} for row in plateau_rows(0.0))

    with pytest.raises(HarnessError, match="val_se"):
        kat.watch(rows, "step")


# --- branches


def probe(step=100, **measured):
    return {"kind": "probe", "step": step, **measured}


def test_collapse_is_reported_once_an_episode_and_by_branch():
    watching = monitors()

    (event,) = watching.observe(probe(rho_rwkv=0.001, rho_mamba=0.5))
    assert event.evidence.startswith("rwkv")
    assert watching.observe(probe(rho_rwkv=0.001, rho_mamba=0.5)) == []
    assert watching.observe(probe(rho_rwkv=0.3, rho_mamba=0.5)) == []
    assert len(watching.observe(probe(rho_rwkv=0.001, rho_mamba=0.001))) == 2


def test_an_output_projection_that_starts_at_zero_is_no_collapse():
    assert monitors().observe(probe(step=0, rho_rwkv=math.nan)) == []
    assert [e.kind for e in monitors().observe(probe(step=5, rho_rwkv=math.nan))] == ["STOP"]


def test_collapse_is_not_judged_while_the_learning_rate_rises():
    def met(*rates):
        watching = monitors()
        for step, lr in enumerate(rates, start=21):
            watching.observe({"kind": "step", "step": step, "loss": 5.0, "lr": lr, "grad_norm": 1.0})
        return [event.criterion for event in watching.observe(probe(step=30, rho_rwkv=0.001))]

    assert met(1e-3, 1.1e-3) == []
    assert met(1e-3, 1.1e-3, 1.1e-3) == ["collapse"]
    assert met(1e-3, 0.9e-3) == ["collapse"]


@pytest.mark.parametrize(
    ("low", "high", "share"), [(0.001, 0.01, 0.01), (-0.01, 0.01, 0.2)], ids=["ablation hurts", "carries information"]
)
def test_one_sign_of_life_is_enough(low, high, share):
    row = probe(delta_loss_low_mamba=low, delta_loss_high_mamba=high, info_share_mamba=share)

    watching = monitors()
    assert [event for _ in range(5) for event in watching.observe(row)] == []


def test_a_gradient_ratio_outside_its_band_is_only_ever_an_alert():
    events = found(edited("grad_norm_rwkv", lambda step, norm: 0.01, "step"))

    assert kinds(events, "gradient_ratio") == [("ALERT", 400)]
    assert kat.stops(events) == {}


def test_a_ratio_that_starts_near_zero_and_recovers_is_healthy():
    """As it does when the output projection of RWKV-6 starts at zero."""
    assert found(edited("grad_norm_rwkv", lambda step, norm: min(0.006 + step / 1000, 0.25), "step")) == []


def test_mamba_without_gradient_is_an_alert():
    assert kinds(found(edited("grad_norm_mamba", lambda step, norm: 0.0, "step")), "gradient_ratio") == [("ALERT", 400)]


# --- all of them


@pytest.mark.parametrize("cut", [1, 137, 480, 777])
def test_a_resumed_training_raises_the_same_events(cut):
    """Two spikes, swings and a rise of validation loss, cut anywhere, through JSON."""

    def trouble(row):
        if row["kind"] == "step":
            row["loss"] += 0.6 * math.sin(row["step"] / 20) + (9 if 480 <= row["step"] <= 490 else 0)
        elif row["step"] > 600:
            row["val_loss"] *= 1.2

    rows = list(kat.simulated_rows(73, 1000, trouble))
    straight = monitors()
    expected = [event for row in rows for event in straight.observe(row)]
    assert len(expected) >= 3

    before, after = monitors(), monitors()
    events = [event for row in rows[:cut] for event in before.observe(row)]
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    events += [event for row in rows[cut:] for event in after.observe(row)]

    assert events == expected
    assert after.state_dict() == straight.state_dict()


def test_a_saved_state_is_not_shared_with_the_monitor():
    watching = monitors()
    rows = list(kat.simulated_rows(74, 200))
    for row in rows[:100]:
        watching.observe(row)
    saved = watching.state_dict()
    text = json.dumps(saved)
    other = monitors()
    other.load_state_dict(saved)
    for row in rows[100:]:
        watching.observe(row)
        other.observe(row)

    assert json.dumps(saved) == text


def test_the_state_of_other_monitors_is_refused():
    with pytest.raises(HarnessError, match="another version or schedule"):
        monitors("plateau").load_state_dict(monitors().state_dict())
    state = monitors().state_dict()
    state["spike"].pop("window")
    with pytest.raises(HarnessError, match="monitor spike"):
        monitors().load_state_dict(state)


def test_a_criterion_that_saw_nothing_says_so():
    watching = monitors()
    for row in kat.simulated_rows(75, 50):
        watching.observe(row)

    assert set(watching.unfed()) == {"collapse", "dead_branch"}
    watching.observe(probe(rho_rwkv=0.3))
    assert watching.unfed() == ("dead_branch",)


def test_infinite_losses_do_not_poison_the_other_monitors():
    def poison(row):
        if row["kind"] == "step" and row["step"] in (150, 151, 320):
            row["loss"] = math.inf if row["step"] == 320 else math.nan

    events = found(poison)

    assert [(e.criterion, e.kind) for e in events] == [("non_finite", "STOP")]


def test_rows_of_other_kinds_are_passed_over():
    watching = monitors("plateau")

    assert all(watching.observe({"kind": kind}) == [] for kind in ("header", "final_eval", "event"))
    assert len(watching.unfed()) == len(watching.rules)


def test_the_table_of_the_harness_has_every_limit():
    limits = StopLimits.of(load_thresholds().of("STOP"))

    assert 0 < limits.overfit_alert < limits.overfit_stop
    assert limits.gradient_ratio[0] < 1 < limits.gradient_ratio[1]


def bands(low, high, warn=None):
    return Bands.model_validate({"pass": (low, high), "warn": warn or (low, high)})


def test_limits_come_from_the_table_and_a_missing_one_is_named():
    inf = math.inf
    table = {
        "overfit": bands(-inf, 0.05, warn=(-inf, 0.10)),
        "lr_drop_gain": bands(2, inf),
        "oscillation": bands(0, 0.5),
        "spike_mads": bands(-inf, 6),
        "spike_nats": bands(-inf, 0.2),
        "spike_ratio": bands(0, 2),
        "write_sensitivity": bands(0.01, inf),
        "dead_channels": bands(0, 0.3),
        "info_share": bands(0.05, 1),
        "gradient_ratio": bands(0.1, 10),
    }

    assert StopLimits.of({**table, "stops": bands(0, 0)}) == LIMITS
    with pytest.raises(HarnessError, match=r"\[STOP.spike_ratio\]"):
        StopLimits.of({name: value for name, value in table.items() if name != "spike_ratio"})
