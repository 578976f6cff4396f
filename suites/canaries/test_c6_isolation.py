"""C6: conversations do not leak into each other."""

import pytest

PAIRS, TURNS = 8, 3


@pytest.mark.check("C6a")
def test_a_stream_of_two_users_is_kept_apart(canary):
    canary("C6a")


@pytest.mark.check("C6b")
def test_a_fact_stays_with_its_user(canary):
    canary("C6b")


@pytest.mark.check("C6a")
def test_states_keep_two_conversations_apart_to_the_bit(bench, words, taught, judge, require_hooks):
    import torch

    from fixtures.dialogues.canaries import make_canary
    from harness.isolation import interleave

    texts = [torch.tensor(words.encode(probe.context)) for probe in make_canary("C6b", words, "3.5M").probes]
    pairs = list(zip(texts[: 2 * PAIRS : 2], texts[1 : 2 * PAIRS : 2], strict=True))
    for seed, model, _ in taught:
        require_hooks(model, "state")
        found = interleave(model, pairs, turns=TURNS, device=bench.device)
        note = f"{found.equal} of {found.pairs} pairs of conversations"
        judge.holds("conversations_apart", found.equal == found.pairs, value=found.largest, seed=seed, note=note)
