"""TURNS: recall over turns of the subject and of three other architectures, in one figure."""

import pytest

pytestmark = pytest.mark.check("TURNS")


def test_recall_over_turns_by_architecture(bench, words, taught, judge, publish_figure):
    from fixtures.dialogues.persistence import measured_turns, taught_length, taught_others
    from fixtures.dialogues.training import TeachingError
    from harness.persistence_reading import turns_figure
    from models.stack import ContextError

    try:
        beside = taught_others(bench, words)
    except TeachingError as error:
        judge.missing(str(error))
    models = [(bench, seed, model) for seed, model, _ in taught]
    models += [
        (each, run.seed, each.once(("taught", run.directory), run.model)) for each, runs in beside for run in runs
    ]  # fmt: skip
    length, lines = taught_length(bench), {}
    for each, seed, model in models:
        name = each.subject.name
        try:
            reading = measured_turns(each, words, model)
        except ContextError as error:
            judge.missing(f"{name}: {error}")
        lines[f"{name}, seed {seed}"] = reading
        reset = reading.reset
        judge("reset_excess", reset.low - reading.chance, case=name, seed=seed, n=reset.n, null_value=0,
              note=f"accuracy from the last turn alone {reset.value:.3f}, chance {reading.chance:g}")  # fmt: skip
        for lag in reading.lags:
            case = f"{name}, {lag.turns} turns" + (", extrapolation" if lag.longest > length else "")
            found = lag.accuracy
            judge.info("accuracy", found.value, ci=found.ci, case=case, seed=seed, n=found.n, null_value=reading.chance,
                       n_clusters=found.n_clusters, note=f"{lag.tokens:.0f} tokens on average")  # fmt: skip
        score = reading.persistence(seed).score
        judge.info("score", score.turns.value, ci=score.turns.ci, unit="turns", case=name, seed=seed, n=score.turns.n,
                   note=f"censored {score.censored}" if score.censored else "")  # fmt: skip
    publish_figure("turns-by-architecture", turns_figure(lines))
