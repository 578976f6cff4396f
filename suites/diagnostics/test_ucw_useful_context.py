"""UCW: how much context is worth having, in units of the length that the model was trained on."""

import pytest

pytestmark = pytest.mark.check("UCW")

WINDOWS = 256


def test_useful_context_reaches_the_trained_length(bench, trained, judge, require_hooks):
    from harness.context import DOCUMENTS, context_losses, octaves
    from harness.metrics.context import ContextLosses, useful_context
    from harness.state_shapes import grows

    length = bench.config.data.seq_len
    for seed, model, where in trained:
        require_hooks(model, "state")
        caches = grows(model, bench.validation_tokens(1, 16))
        contexts = octaves(bench.dataset.val, length, beyond=not caches)
        if not contexts:
            judge.missing(f"fewer than {DOCUMENTS} validation documents hold {length} tokens; give longer documents")
        windows = bench.windows(WINDOWS, contexts[-1])
        losses = bench.measured(
            f"losses of {len(windows)} windows by context {contexts}",
            ContextLosses,
            model,
            lambda model=model, windows=windows, contexts=contexts: context_losses(
                model, windows, contexts, device=bench.device, key_span=length
            ),
        )
        useful = useful_context(losses, seed=seed)
        note = f"contexts of {losses.contexts[0]} to {losses.contexts[-1]} tokens were read"
        at = where | {"n": len(windows), "n_clusters": losses.num_documents}
        judge("useful_share", useful / length, note=note, **at)
        judge.info("useful_context", useful, unit="tokens", **at)
