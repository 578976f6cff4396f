"""CODE: a model that is talked to answers with talk, not with code."""

import pytest

pytestmark = pytest.mark.check("CODE")

REPLIES = {("3.5M", "cpu"): 1}
"""Replies to each sentence, by scale and device; what follows where nothing is said."""
ALL_REPLIES = 8
TOKENS = 40
STRETCHES = 400


@pytest.fixture
def codes(bench, trained, text, judge):
    """``(how much looks like code, where)`` of everything trained."""
    from fixtures.dialogues.prompts import EMOTIONAL, as_turn
    from harness.generate import GenerationError
    from harness.samples import CodeReading, read_code

    count = REPLIES.get((bench.subject.scale, bench.device), ALL_REPLIES)
    prompts = [as_turn(sentence) for sentence in EMOTIONAL]
    found = []
    for seed, model, where in trained:

        def measure(model=model, seed=seed):
            return read_code(
                model, prompts, text.encode, text.decode, text.stretches(STRETCHES, TOKENS), count=count,
                tokens=TOKENS, seed=seed, device=bench.device,
            )  # fmt: skip

        try:
            reading = bench.measured(f"{count} replies of {TOKENS} tokens, seed {seed}", CodeReading, model, measure)
        except GenerationError as error:
            judge.invalid(str(error))
        found.append((reading, where))
    return found


def test_replies_are_talk(codes, judge):
    for reading, where in codes:
        corpus, share = reading.corpus, reading.share
        judge.info("corpus_share", corpus.value, ci=corpus.ci, n=corpus.n, n_clusters=corpus.n_clusters,
                   note="stretches of validation text", **where)  # fmt: skip
        if reading.learned_from_code:
            judge.na(f"the corpus is code itself: {corpus.value:.0%} of its stretches look like it")
        note = f"for example {reading.example!r}" if reading.example else ""
        judge("code_share", share.value, ci=share.ci, n=share.n, n_clusters=share.n_clusters,
              null_value=corpus.value, note=note, **where)  # fmt: skip
