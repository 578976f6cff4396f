"""SAMPLES: what a model says, for a reader. Nothing of it is judged but that the same seed says the same."""

import pytest

pytestmark = pytest.mark.check("SAMPLES")

TOKENS = 48


@pytest.fixture
def samples_of(bench, text, judge):
    """``samples_of(model, seed)``: the fixed openings, continued."""
    from fixtures.dialogues.prompts import OPENINGS
    from harness.generate import GenerationError
    from harness.samples import Samples, read_samples

    def measure(model, seed):
        try:
            return bench.measured(
                f"samples of {TOKENS} tokens, seed {seed}", Samples, model,
                lambda: read_samples(
                    model, OPENINGS, text.encode, text.decode, text.unigram, tokens=TOKENS, seed=seed,
                    device=bench.device,
                ),
            )  # fmt: skip
        except GenerationError as error:
            judge.invalid(str(error))

    return measure


@pytest.fixture
def show(judge, publish_figure):
    """``show(kind, seed, samples, where)``: figures of one model's samples, and their text."""
    from harness.figures import Passage, TextFigure

    def publish(kind, seed, samples, where):
        at, varied = where | {"case": kind}, samples.diversity
        for name in ("distinct_1", "distinct_2", "repetition"):
            judge.info(name, getattr(varied, name), **at)
        judge.info("perplexity", samples.perplexity, note="of what it said, by itself", **at)
        judge.info("unigram_perplexity", samples.unigram, note="of what it said, by the words' frequencies", **at)
        judge.holds(f"{kind}: the same seed says the same", samples.repeatable, seed=seed)
        passages = [
            Passage(f"{kind}, seed {seed}", prompt, said)
            for prompt, said in zip(samples.prompts, samples.texts, strict=True)
        ]
        publish_figure(f"samples-{kind}-seed-{seed}", TextFigure(f"Samples, {kind}, seed {seed}", passages))

    return publish


def test_what_it_says(trained, samples_of, show, text, judge):
    from harness.samples import diversity

    natural = diversity([ids for ids, _ in text.stretches(8, TOKENS)])
    for name in ("distinct_1", "distinct_2", "repetition"):
        judge.info(name, getattr(natural, name), case="validation text")
    for seed, model, where in trained:
        show("trained", seed, samples_of(model, seed), where)


def test_what_it_says_after_the_dialogues(taught, samples_of, show):
    for seed, model, where in taught:
        show("taught", seed, samples_of(model, seed), where)
