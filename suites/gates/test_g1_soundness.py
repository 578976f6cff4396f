"""G1: the model computes what its contract says, forwards and backwards.

Shapes and sizes are right, values are finite, no position sees a later one, no row another, a carried state continues
a pass exactly, and a gradient reaches every trainable tensor. Every later number is a function of these.
"""

import pytest

pytestmark = pytest.mark.check("G1")

BATCH, LENGTH = 3, 96
EDITS = (1, 17, 64, 95)
CUTS = (1, 17, 64, 94)


@pytest.fixture
def model(bench):
    # a few updates in: RWKV-6 starts with a zero output matrix, so a fresh branch could leak nothing
    return bench.exercised[0]


@pytest.fixture
def tokens(bench):
    return bench.validation_tokens(BATCH, LENGTH)


def test_logits_have_the_right_shape_and_are_finite(bench, model, tokens, judge):
    import torch

    with torch.no_grad():
        logits = model(tokens)
    wanted = (*tokens.shape, bench.config.data.vocab_size)
    judge.holds("logits_shape", tuple(logits.shape) == wanted, note=f"{tuple(logits.shape)}, expected {wanted}")
    judge("non_finite_logits", (~torch.isfinite(logits)).sum(), n=logits.numel())


def test_size_is_the_nominal_one(bench, model, judge):
    from harness.soundness import count_parameters, nominal_size

    total = count_parameters(model)
    judge("size_ratio", total / nominal_size(bench.subject.scale), note=f"{total:,} parameters in all")


def test_no_position_sees_a_later_one(bench, model, tokens, judge):
    from harness.soundness import causality

    seen = causality(model, tokens, EDITS, bench.config.data.vocab_size)
    if seen.effect == 0:
        judge.invalid("editing a token changed no logit at all, so the probe would not see a leak either")
    judge("causality_leak", seen.leak, n=len(EDITS), note=seen.where)


def test_no_row_sees_another_one(bench, model, tokens, judge):
    from harness.soundness import batch_independence

    seen = batch_independence(model, tokens, bench.config.data.vocab_size)
    if seen.effect == 0:
        judge.invalid("editing the other rows changed no logit at all, so the probe would not see a leak either")
    judge("batch_leak", seen.leak, n=BATCH, note=seen.where)


def test_a_carried_state_continues_the_pass(model, tokens, judge, require_hooks):
    from harness.soundness import split_and_carry

    require_hooks(model, "state")
    for errors in split_and_carry(model, tokens, CUTS):
        path, worst = errors.worst_state
        case = f"cut at {errors.cut}"
        judge("carry_logits_error", errors.logits, case=case)
        judge("carry_state_error", worst, case=case, note=path)
        judge("carry_gradient_error", errors.gradients, case=case)


def test_an_injected_initial_state_starts_afresh(model, tokens, judge, require_hooks):
    from harness.soundness import reset

    require_hooks(model, "state", "init_state")
    judge("reset_error", reset(model, tokens))


def test_a_gradient_reaches_every_tensor(bench, judge):
    _, reach = bench.exercised
    judge("non_finite_gradients", len(reach.non_finite), n=reach.num_tensors, note=", ".join(reach.non_finite[:5]))
    unreached = ", ".join(reach.never_reached[:5])
    judge("tensors_without_gradient", len(reach.never_reached), n=reach.num_tensors, note=unreached)
