"""D4: what a longer context of the same document is worth, target by target, and what becomes of it past the training.

The targets are the same for every context; only the start of what is read moves (docs/metrics.md, D4).
"""

import pytest

pytestmark = pytest.mark.check("D4")


@pytest.fixture
def curves(bench, trained, judge):
    """``(seed, model, losses by context, where)`` for everything trained."""
    from fixtures.bench import SAMPLE_WINDOWS
    from harness.context import context_losses
    from harness.data import DataError
    from harness.metrics.context import SHORT, ContextLosses, doublings

    data = bench.config.data
    contexts = doublings(SHORT, max(data.context_target, data.seq_len))
    try:
        windows = bench.windows(SAMPLE_WINDOWS.get(bench.subject.scale, 256), contexts[-1])
    except DataError as error:
        judge.missing(str(error))
    found = []
    for seed, model, where in trained:
        losses = bench.measured(
            f"losses of {len(windows)} windows by context up to {contexts[-1]}",
            ContextLosses,
            model,
            lambda model=model: context_losses(model, windows, contexts, device=bench.device, key_span=data.seq_len),
        )
        found.append((seed, model, losses, where | {"n": len(windows), "n_clusters": losses.num_documents}))
    return found


def test_a_longer_context_costs_nothing(bench, curves, judge, publish_figure):
    from itertools import pairwise

    from harness.figures import LineFigure
    from harness.metrics.context import context_step, curve, longest_within

    panels = {}
    for seed, _, losses, where in curves:
        trained = longest_within(losses.contexts, bench.config.data.seq_len)
        for shorter, longer in pairwise(trained):
            step = context_step(losses, shorter, longer, seed=seed)
            judge("context_step", step.value, ci=step.ci, case=f"{shorter} to {longer} tokens", **where)
        for context, loss in curve(losses, seed=seed).items():
            judge.info("loss", loss.value, ci=loss.ci, unit="nats/token", case=f"{context} tokens", **where)
        # paired: documents differ by far more than contexts do
        first, *longer = losses.contexts
        steps = {context: context_step(losses, first, context, seed=seed) for context in longer}
        panels[f"seed {seed}, against {first} tokens"] = {
            "change": [(context, step.value) for context, step in steps.items()],
            "90 % low": [(context, step.low) for context, step in steps.items()],
            "90 % high": [(context, step.high) for context, step in steps.items()],
        }
    title = f"What more context changes for the same targets, {bench.subject.name}"
    publish_figure("loss-by-context", LineFigure(title, "context, tokens", "nats a token", panels, x_log=True))


def test_the_model_uses_what_lies_far_back(bench, curves, judge):
    from harness.metrics.context import LONG, SHORT, context_step, key_step, long_range_benefit, verdict

    for seed, _, losses, where in curves:
        if LONG not in losses.contexts:
            judge.missing(f"the model read no context of {LONG} tokens: {losses.refused.get(LONG, 'none was asked')}")
        benefit = long_range_benefit(losses, seed=seed)
        judge("long_range_benefit", benefit.value, ci=benefit.ci, null_value=0, note=verdict(benefit.value), **where)
        gain = context_step(losses, LONG, SHORT, seed=seed)
        judge.info("long_range_gain", gain.value, ci=gain.ci, unit="nats/token", null_value=0, **where)
        if not any(losses.key_counts):
            continue  # no target of these windows was said before at such a distance
        key = key_step(losses, LONG, SHORT, seed=seed)
        note = f"{sum(losses.key_counts)} targets that were said before, but not in the last 32 tokens"
        judge.info("key_token_gain", key.value, ci=key.ci, unit="nats/token", null_value=0, note=note, **where)


def test_nothing_breaks_beyond_the_trained_length(bench, curves, judge, require_hooks):
    from harness.metrics.context import beyond_note, degradation, longest_within
    from harness.state_shapes import grows

    length = bench.config.data.seq_len
    for seed, model, losses, where in curves:
        require_hooks(model, "state")
        if grows(model, bench.validation_tokens(1, 16)):
            judge.na(f"the state grows with the text, so positions beyond the {length} of the training are untrained")
        within = longest_within(losses.contexts, length)
        beyond = [c for c in losses.contexts if c > length]
        if not within or not beyond:
            judge.missing(f"nothing longer than the training was read: {losses.refused or 'give a context_target'}")
        for context in beyond:
            ratio = degradation(losses, within[-1], context, seed=seed)
            note = beyond_note(ratio.value)
            judge("degradation", ratio.value, ci=ratio.ci, case=f"{context} tokens", null_value=1, note=note, **where)
