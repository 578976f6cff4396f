"""S2: other text leads to another state, and so does a single other token."""

import pytest

pytestmark = pytest.mark.check("S2")

WINDOWS, LENGTH = 64, 128


def test_states_of_different_texts_differ(bench, trained, judge, require_hooks):
    from harness.state_size import Motions, measure_motions

    for seed, model, where in trained:
        require_hooks(model, "state")

        def measure(model=model, seed=seed):
            windows, vocab_size = bench.windows(WINDOWS, LENGTH), bench.config.data.vocab_size
            return measure_motions(model, windows, device=bench.device, vocab_size=vocab_size, seed=seed)

        motions = bench.measured(f"motions of {WINDOWS} windows of {LENGTH}, seed {seed}", Motions, model, measure)
        if not motions.found:
            judge.invalid("no two validation windows lie in different documents: there are no pairs to compare")
        sizes = where | {"n": motions.num_windows, "n_clusters": motions.num_documents}
        for motion in motions.found:
            site = sizes | {"case": motion.kind, "layer": motion.layer, "branch": motion.branch}
            judge("pair_distance", motion.pairs.value, ci=motion.pairs.ci, null_value=2**0.5, **site)
            judge("edit_distance", motion.edit.value, ci=motion.edit.ci, **site)
            judge.info("early_edit_distance", motion.early_edit.value, ci=motion.early_edit.ci, **site)
