"""EVOLUTION: the state answers edits, keeps what it should as long as its decays say, and small differences die out."""

import math

import pytest

pytestmark = pytest.mark.check("EVOLUTION")


@pytest.fixture
def evolutions(bench, trained, require_hooks, judge):
    """``(evolution, where)`` of everything trained."""
    from harness.ablation import donors
    from harness.evolution import Evolution, evolution
    from harness.state_shapes import grows

    windows = bench.windows(24, 256)
    found = []
    for seed, model, where in trained:
        require_hooks(model, "state")
        if grows(model, bench.validation_tokens(1, 4)):
            judge.na("the state grows with what was read (a key-value cache): it neither decays nor evolves")
        measured = bench.measured(
            f"evolution of {len(windows)} windows",
            Evolution,
            model,
            lambda model=model, seed=seed: evolution(
                model,
                windows,
                donors(windows.documents, seed).tolist(),
                device=bench.device,
                vocab_size=bench.config.data.vocab_size,
            ),
        )
        found.append((measured, where | {"n": measured.n, "n_clusters": measured.n_documents}))
    return found


def test_the_state_responds_to_edits_the_more_the_larger_they_are(evolutions, bench, judge, publish_figure):
    from harness.evolution_figures import figures

    for evolution, where in evolutions:
        for name, figure in figures(evolution, f"{bench.subject.name}, seed {where['seed']}").items():
            publish_figure(f"{name}-seed-{where['seed']}", figure)
        for branch, found in evolution.branches.items():
            at = where | {"case": branch, "branch": branch}
            order = found.dose_monotonicity
            judge("dose_monotonicity", order.value, ci=order.ci, null_value=0, **at)
            judge("zero_dose_distance", found.dose[0].value, **at)
            for lag, effect in found.edit.items():
                case = f"lag {lag}"
                judge.info("edit_effect", effect.value, ci=effect.ci, **where | {"case": case, "branch": branch})


def test_differences_last_as_long_as_the_decays_say(evolutions, judge):
    for evolution, where in evolutions:
        for branch, found in evolution.branches.items():
            for layer, kept in found.layers.items():
                at = where | {"branch": branch, "layer": layer}
                judge("half_life", kept.half_life.value, ci=kept.half_life.ci, **at)
                if kept.implied_half_life is None:
                    continue  # the model reports no decays, so it makes no claim that could be held against it
                judge("half_life_ratio", _ratio(kept.half_life.value, kept.implied_half_life), null_value=1, **at)
                judge("superposition_error", kept.superposition_error, null_value=0, **at)


def test_small_differences_die_out(evolutions, judge):
    for evolution, where in evolutions:
        for branch, found in evolution.branches.items():
            exponent = found.lyapunov
            judge("lyapunov_exponent", exponent.value, ci=exponent.ci, **where | {"case": branch, "branch": branch})


def test_no_token_moves_what_came_before_it(bench, trained, require_hooks, judge, publish_figure):
    from harness.influence import Influence, figures, heat_map

    windows = bench.windows(4)
    for seed, model, where in trained:
        require_hooks(model, "state")
        found = bench.measured(
            "context heat map of 4 windows",
            Influence,
            model,
            lambda model=model: heat_map(model, windows, device=bench.device),
        )
        judge("influence_before_source", found.before_source, n=found.n, null_value=0, **where)
        for name, figure in figures(found, f"{bench.subject.name}, seed {seed}").items():
            publish_figure(f"{name}-seed-{seed}", figure)


def _ratio(measured, implied):
    """Measured over implied half-life; two that are both infinite agree."""
    return 1.0 if math.isinf(measured) and math.isinf(implied) else measured / implied
