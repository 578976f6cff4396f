"""S0: the state has the shapes of the configuration, is kept in fp32, and is all that the model remembers.

Shapes alone prove nothing: a projection of the outputs can have them too. So the text is read on from the returned
state, and must come out as in one pass; a state of zeros and one of noise must not.
"""

import pytest

pytestmark = pytest.mark.check("S0")

BATCHES = (1, 3)
LENGTH = 80
CUTS = (1, 17, 64)
DTYPES = ("float32", "bfloat16")


def _state(model, tokens, dtype):
    import torch

    from harness.evaluation import autocast
    from harness.trace import state_after

    with autocast(tokens.device, getattr(torch, dtype)):
        return state_after(model, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_has_its_shape_and_precision(weights, dtype, bench, judge, require_hooks):
    from harness.state_shapes import expected_state, report_shapes

    for model, where in weights:
        require_hooks(model, "state", "init_state")
        for batch in BATCHES:
            specs = expected_state(model, batch)
            report = report_shapes(_state(model, bench.validation_tokens(batch, LENGTH), dtype), specs, LENGTH)
            case = {**where, "case": f"{where['case']}, {dtype}, batch of {batch}"}
            judge("wrong_tensors", len(report.faults), note="; ".join(report.faults[:3]), **case)
            judge("low_precision_tensors", len(report.low_precision), note=", ".join(report.low_precision[:3]), **case)
            judge("bytes_error", report.bytes_error, **case)
            judge.info("state_bytes", report.bytes_per_row, unit="bytes a document", **case)


def test_the_first_state_has_the_same_shapes(weights, judge, require_hooks):
    from harness.state_shapes import expected_state, report_shapes

    for model, where in weights:
        require_hooks(model, "state", "init_state")
        for batch in BATCHES:
            report = report_shapes(model.init_state(batch), expected_state(model, batch), 0)
            judge("wrong_tensors", len(report.faults), note="; ".join(report.faults[:3]),
                  **{**where, "case": f"{where['case']}, init_state, batch of {batch}"})  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_state_is_all_that_the_model_remembers(weights, dtype, bench, judge, require_hooks):
    import torch

    from harness.sufficiency import round_trips

    for model, where in weights:
        require_hooks(model, "state")
        for trip in round_trips(model, bench.validation_tokens(3, LENGTH), CUTS, getattr(torch, dtype)):
            case = {**where, "case": f"{where['case']}, {dtype}, read on from token {trip.cut}"}
            exact = dtype == "float32"
            if exact and not trip.sees:
                judge.invalid(
                    f"{case['case']}: a state of zeros changes the logits by {trip.zeroed:.1e} and one of noise by "
                    f"{trip.proxy:.1e}, so a wrong state would not show"
                )
            judge("round_trip_error" if exact else "round_trip_error_bf16", trip.error, **case)
            worth = f"zeros change the logits by {trip.zeroed:.2e}"
            if trip.sees:
                judge("round_trip_share", trip.share, note=worth, **case)
            if not exact:
                note = worth if trip.sees else f"{worth}: a wrong state would not show beside it, and float32 judges"
                judge.info("rounding", trip.rounding, note=note, **case)
            for kind, effect in trip.kinds.items():
                judge.info("effect_of_zeroing", effect, **{**case, "case": f"{case['case']}, {kind}"})
