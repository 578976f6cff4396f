"""What the canaries share: models that were taught the dialogues, and how one canary is read and judged."""

import pytest

ITEMS = {("3.5M", "cpu"): 200}
"""Items of a canary, by scale and device; what follows where nothing is said."""
ALL_ITEMS = 400
CONTROL_ITEMS = 200


@pytest.fixture(scope="session")
def lexicon(bench):
    """The words to choose between; the error where the corpus has none."""
    from fixtures.dialogues.lexicon import LexiconError
    from fixtures.dialogues.training import lexicon_of

    try:
        return lexicon_of(bench)
    except LexiconError as error:
        return error


@pytest.fixture
def words(lexicon, judge):
    """The words to choose between. MISSING where the corpus has no text, or too few words."""
    if isinstance(lexicon, Exception):
        judge.missing(str(lexicon))
    return lexicon


@pytest.fixture
def lessons(bench, words, judge, trained):
    """Everything trained, taught the dialogues. MISSING where lessons diverged."""
    from fixtures.dialogues.training import TeachingError, teach

    try:
        return bench.once(("taught",), lambda: teach(bench, words))
    except TeachingError as error:
        judge.missing(str(error))


@pytest.fixture
def taught(bench, lessons):
    """``(seed, model, where)`` of everything trained, taught the dialogues."""
    return [
        (each.seed, bench.once(("taught", each.directory), each.model),
         {"seed": each.seed, "step": each.result.steps, "checkpoint_sha256": each.checkpoint_sha256})
        for each in lessons
    ]  # fmt: skip


@pytest.fixture
def read(bench, words):
    """``read("C1a", model)``: what a model makes of a canary, measured once."""
    from fixtures.dialogues.canaries import make_canary
    from harness.forced_choice import CanaryReading, read_canary

    scale = bench.subject.scale
    count = ITEMS.get((scale, bench.device), ALL_ITEMS)

    def measure(canary, model):
        return bench.measured(
            f"canary {canary}, {count} items", CanaryReading, model,
            lambda: read_canary(
                model, make_canary(canary, words, scale).first(count), words.encode, device=bench.device,
                num_controls=min(count, CONTROL_ITEMS),
            ),
        )  # fmt: skip

    return measure


@pytest.fixture
def readings(read, taught):
    """``readings("C1a")``: ``(seed, reading, where)`` of everything taught."""
    return lambda canary: [(seed, read(canary, model), where) for seed, model, where in taught]


@pytest.fixture
def require_learnable(bench, words, read, readings, judge):
    """INVALID unless the subject or the reference learned to recall: else the lessons are not shown to teach it."""
    from fixtures.dialogues.training import LEARNABLE, REFERENCE, teach_reference
    from harness.forced_choice import has_learned

    if any(has_learned(reading) for name in LEARNABLE for _, reading, _ in readings(name)):
        return
    reference = bench.once(("reference",), lambda: teach_reference(bench, words))
    if reference is None:
        judge.invalid(f"{REFERENCE[bench.device]} is the reference that must learn to recall here, and it has not")
    model = bench.once(("taught", reference.directory), reference.model)
    if not all(has_learned(read(name, model)) for name in LEARNABLE):
        judge.invalid(
            f"neither the subject nor {REFERENCE[bench.device]} has learned to recall: the lessons may be at fault"
        )


@pytest.fixture
def canary(bench, words, judge, lessons, readings, publish_items, require_learnable):
    """``canary("C1a")``: read a canary of everything taught, look at its controls, and judge it."""
    from fixtures.dialogues.canaries import make_canary
    from fixtures.dialogues.training import DEV_ITEMS
    from harness.forced_choice import leak
    from harness.metrics.forced_choice import kappa

    results = {each.seed: (each.lr, each.result) for each in lessons}

    def run(name):
        reference = make_canary(name, words, bench.subject.scale).reference()
        rates = (f"by what was named last {reference.always_last:.2f}, by anything that was named "
                 f"{reference.bag_of_words:.2f}")  # fmt: skip
        for seed, reading, where in readings(name):
            found, at = reading.accuracy, where | {"null_value": reading.chance}
            for form, control in reading.controls.items():
                judge.info("control_accuracy", control.value, ci=control.ci, case=form, n=control.n, **at)
            if reason := leak(reading, reference):
                judge.invalid(f"{name}: {reason}")
            lr, result = results[seed]
            learned_at = f"learning rate {lr:g}, loss of the last epoch {result.losses[-1]:.3f}"
            for split, accuracies in result.accuracies.items():
                if name in accuracies:
                    judge.info("lesson_accuracy", accuracies[name], case=split, n=DEV_ITEMS, note=learned_at, **at)
            at |= {"n": found.n, "n_clusters": found.n_clusters}
            judge.info("raw_accuracy", reading.raw.value, ci=reading.raw.ci, note="by log p alone", **at)
            corrected = kappa(found, reading.chance)
            judge.info("kappa", corrected.value, ci=corrected.ci, **at | {"null_value": 0})
            say = judge if judge.demands("accuracy") else judge.info
            say("accuracy", found.value, ci=found.ci, note=rates, **at)
            back = reading.reversion and reading.reversion.among_named
            if back is not None:
                note = f"of {back.n} answers that name the old or the new value"
                judge("reversion", back.value, ci=back.ci, null_value=0.5, note=note, n=back.n,
                      n_clusters=back.n_clusters, **where)  # fmt: skip
            answered = {str(item): (value, 1) for item, value in enumerate(reading.credits)}
            publish_items("accuracy", answered, seed=seed, unit="1", direction="higher")
        if not judge.demands("accuracy") and reading.reversion is None:
            judge.na("the lessons of this scale do not teach it: its accuracy is shown and not judged")

    return run


@pytest.fixture
def text(bench, judge):
    """The corpus in use as text: what is generated is read with its tokenizer. MISSING where it has no text."""
    from fixtures.corpus_text import CorpusText
    from harness.data import DataError

    try:
        return bench.once(("corpus text",), lambda: CorpusText.of(bench.dataset))
    except DataError as error:
        judge.missing(str(error))
