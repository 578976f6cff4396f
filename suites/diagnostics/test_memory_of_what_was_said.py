"""MEMORY: what a linear reader finds in the state of what was said once, and what a planted fact is worth.

Below 30M the figures are shown and not judged, but for the controls and for a state that recalls nothing at all.
"""

import pytest

pytestmark = pytest.mark.check("MEMORY")

SIZES = {"3.5M": (320, 160, 80)}
"""Prompts to fit, to test and for the control task, by scale; what follows where nothing is said."""
ALL_SIZES = (2000, 500, 500)
HAYSTACKS = {"3.5M": 32}
ALL_HAYSTACKS = 128
DEPTHS = (0.1, 0.5, 0.9)


@pytest.fixture
def vocabulary(bench, judge):
    """The words to choose between, of the corpus in use. MISSING where it has no text or no words."""
    from fixtures.needles import words
    from harness.data import DataError

    try:
        return words(bench.dataset)
    except DataError as error:
        judge.missing(str(error))


@pytest.fixture
def memories(bench, trained, vocabulary, require_hooks):
    """``(what the probes found, where)`` for everything trained."""
    from fixtures.needles import prompts
    from harness.episodic import EpisodicMemory, probe_memory

    sizes = SIZES.get(bench.subject.scale, ALL_SIZES)
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")

        def measure(model=model, seed=seed):
            sets = prompts(bench.dataset, vocabulary, sizes, seed=seed)
            return probe_memory(model, sets, vocabulary.values, device=bench.device, seed=seed)

        memory = bench.measured(f"probes of the state, {sizes} prompts, seed {seed}", EpisodicMemory, model, measure)
        found.append((memory, where | {"n": sizes[1]}))
    return found


@pytest.fixture
def facts(bench, trained, vocabulary, judge):
    """``(what planted facts are worth, where)`` for everything trained."""
    from fixtures.needles import needles
    from harness.data import DataError
    from harness.needle import NeedleMemory, read_needles

    count, longest = HAYSTACKS.get(bench.subject.scale, ALL_HAYSTACKS), bench.config.data.seq_len
    found = []
    for seed, model, where in trained:

        def measure(model=model, seed=seed):
            sets = [
                needles(bench.dataset, vocabulary, length=length, depths=DEPTHS, count=count, seed=seed)
                for length in (longest // 2, longest)
            ]
            return read_needles(model, sets, device=bench.device, seed=seed)

        try:
            memory = bench.measured(f"planted facts, {count} texts, seed {seed}", NeedleMemory, model, measure)
        except DataError as error:
            judge.missing(str(error))
        found.append((memory, where))
    return found


def test_probes_find_nothing_where_there_is_nothing(memories, judge, publish_figure):
    from harness.figures import LineFigure

    for memory, where in memories:
        chance, shuffled = 1 / memory.choices, memory.shuffled
        note = f"accuracy {shuffled.value:.3f}, chance {chance:g}, {shuffled.n} fits"
        judge("shuffled_excess", shuffled.low - chance, null_value=0, note=note, **where)
        panels = {}
        for task, sites in (("last named", memory.recent), ("queried", memory.queried)):
            for site in sites:
                case, at = f"{task}, lag {site.lag}", where | {"layer": site.layer, "branch": site.branch}
                judge.info("accuracy", site.accuracy.value, ci=site.accuracy.ci, case=case,
                           null_value=1 / memory.choices, **at)  # fmt: skip
                judge.info("information", site.information.value, ci=site.information.ci, unit="nats", case=case,
                           null_value=0, **at)  # fmt: skip
                lines = panels.setdefault(f"{site.branch}, value {task}", {})
                lines.setdefault(f"layer {site.layer}", []).append((site.lag, site.accuracy.value))
        for lines in panels.values():
            lines["chance"] = [(lag, 1 / memory.choices) for lag, _ in next(iter(lines.values()))]
        figure = LineFigure("What a linear probe recalls", "tokens since it was said", "accuracy", panels)
        publish_figure(f"memory-by-lag-seed-{where['seed']}", figure)


def test_the_state_recalls_what_was_just_said(memories, judge):
    from harness.episodic import RECALL_LAG, best_site

    for memory, where in memories:
        best = best_site(memory.recent, RECALL_LAG)
        information = best.information
        at = where | {"layer": best.layer, "branch": best.branch}
        note = f"{RECALL_LAG} tokens after it was said; accuracy {best.accuracy.value:.3f}"
        judge("recalled_information", information.value, ci=information.ci, null_value=0, note=note, **at)


def test_the_state_knows_who_has_what(memories, judge):
    from harness.episodic import best_site

    for memory, where in memories:
        best = best_site(memory.queried, 0)
        bound = memory.bindings[memory.queried.index(best)]
        at = where | {"layer": best.layer, "branch": best.branch}
        judge("selectivity", bound.selectivity, note=f"control task {bound.control:.3f}", **at)
        if bound.binding is not None:
            known, note = bound.binding, f"of {bound.binding.n} answers that name either value"
            judge.info("binding", known.value, ci=known.ci, null_value=0.5, note=note, **at)
        for moved in memory.transplants:
            case = f"state of {moved.part}"
            judge.info("own_choice_depends_on_what_was_said", moved.differing / moved.prompts, case=case, **where)
            if moved.differing:
                judge.info("follows_the_donor", moved.followed / moved.differing, case=case, null_value=0,
                           note=f"of {moved.differing} prompts", **where)  # fmt: skip


def test_without_the_fact_there_is_no_choice(facts, judge):
    for memory, where in facts:
        chance, without = 1 / memory.choices, memory.without
        note = f"accuracy {without.value:.3f}, chance {chance:g}"
        judge("blind_excess", without.low - chance, n=without.n, null_value=0, note=note, **where)

        for reading in memory.readings:
            case = f"{reading.length} tokens, depth {reading.depth:.0%}"
            at = where | {"case": case, "n": reading.gain.n, "n_clusters": reading.gain.n_clusters}
            judge.info("needle_accuracy", reading.accuracy.value, ci=reading.accuracy.ci,
                       null_value=1 / memory.choices, **at)  # fmt: skip
            judge.info("needle_lifted", reading.lifted.value, ci=reading.lifted.ci, null_value=1 / memory.choices,
                       note="choice by what the fact added", **at)  # fmt: skip
            judge.info("needle_gain", reading.gain.value, ci=reading.gain.ci, unit="nats", null_value=0, **at)
