"""HANDOFF: however a text is read, in chunks, token by token, through a file, padded or packed, the result is one."""

import pytest

pytestmark = pytest.mark.check("HANDOFF")

BATCH, LENGTH = 3, 80
DTYPES = ("float32", "bfloat16")


def _judge_agreement(judge, agreement, dtype, where):
    suffix = "" if dtype == "float32" else "_bf16"
    case = {**where, "case": f"{where['case']}, {dtype}, {agreement.way}"}
    judge(f"logits_error{suffix}", agreement.logits, note=agreement.note, **case)
    judge(f"state_error{suffix}", agreement.state, note=agreement.note or f"most in {agreement.worst}", **case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_of_reading_gives_the_same(weights, dtype, bench, judge, require_hooks, tmp_path):
    import torch

    from harness.handoff import hand_off

    for model, where in weights:
        require_hooks(model, "state")
        found = hand_off(model, bench.validation_tokens(BATCH, LENGTH), tmp_path, getattr(torch, dtype))
        if dtype == "float32" and not found.sees:
            judge.invalid("the second half of a text reads the same without the first: there is nothing to hand on")
        for agreement in found.agreements:
            _judge_agreement(judge, agreement, dtype, where)
            if found.sees:
                case = {**where, "case": f"{where['case']}, {dtype}, {agreement.way}"}
                judge("share_of_worth", found.share(agreement), **case)
        case = {**where, "case": f"{where['case']}, {dtype}"}
        judge("reload_error", found.reload_error, **case)
        if dtype != "float32":
            note = f"the second half without the first is off by {found.worth:.2e}"
            judge.info("rounding", found.rounding, note=note if found.sees else f"{note}: float32 judges", **case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_and_packing_change_nothing(weights, dtype, bench, judge, require_hooks):
    import torch

    from harness.handoff import masked_hand_off
    from models.protocol import capabilities

    for model, where in weights:
        require_hooks(model, "state")
        if "segments" not in capabilities(model):
            judge.na("the model takes no segments, so it never sees padding or a packed row")
        for agreement in masked_hand_off(model, bench.validation_tokens(BATCH, LENGTH), getattr(torch, dtype)):
            if agreement.unmasked == 0:
                judge.invalid(f"{agreement.way}: nothing changes without segments either, so the probe sees nothing")
            _judge_agreement(judge, agreement, dtype, where)
