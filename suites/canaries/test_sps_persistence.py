"""SPS: for how many turns of other text a fact is kept."""

import pytest

pytestmark = pytest.mark.check("SPS")

CENSORED = {"": "crosses between the lags", "above": "not lost at the longest lag", "below": "lost at the shortest lag"}


@pytest.fixture
def turns_of(bench, words, judge):
    """``turns_of(model)``: its recall at every lag, measured once. MISSING where its positions run out."""
    from fixtures.dialogues.persistence import measured_turns
    from models.stack import ContextError

    def read(model):
        try:
            return measured_turns(bench, words, model)
        except ContextError as error:
            judge.missing(str(error))

    return read


def test_a_fact_is_kept_for_several_turns(bench, words, taught, require_learnable, turns_of, judge, publish_figure):
    from fixtures.dialogues.persistence import taught_length, taught_peer
    from harness.metrics.forced_choice import leaks
    from harness.persistence_reading import turns_figure

    length = taught_length(bench)
    for seed, model, where in taught:
        reading = turns_of(model)
        reset = reading.reset
        judge.info("reset_accuracy", reset.value, ci=reset.ci, null_value=reading.chance, n=reset.n, **where)
        if leaks(reset, reading.chance):
            judge.invalid(
                f"{reset.value:.2f} right from the last turn alone, where chance is {reading.chance:.3g}: the items "
                "give the answer away, or the state outlives its text"
            )
        for lag in reading.lags:
            case = f"{lag.turns} turns" + (", extrapolation" if lag.longest > length else "")
            note = f"the longest text has {lag.longest} tokens, the lessons had {length}"
            found, raw = lag.accuracy, lag.raw_accuracy
            at = where | {"case": case, "n": found.n, "n_clusters": found.n_clusters, "null_value": reading.chance}
            judge.info("accuracy", found.value, ci=found.ci, note=note, **at)
            judge.info("raw_accuracy", raw.value, ci=raw.ci, **at)
            judge.info("token_lag", lag.tokens, unit="tokens", case=case, n=found.n, **where)

        curve = reading.persistence(seed)
        score, half, area = curve.score, curve.half_life, curve.area
        at = where | {"n": score.turns.n, "n_clusters": score.turns.n_clusters}
        rising = "; a longer lag is better than a shorter one, so this is no limit of memory" if curve.rises else ""
        judge("score", score.turns.value, ci=score.turns.ci, note=CENSORED[score.censored] + rising, **at)
        kept = reading.at(8).accuracy
        judge("accuracy_at_8", kept.value, ci=kept.ci, null_value=reading.chance, n=kept.n, n_clusters=kept.n_clusters,
              **where)  # fmt: skip
        judge.info("half_life", half.turns.value, ci=half.turns.ci, unit="turns", note=CENSORED[half.censored], **at)
        judge.info("area", area.value, ci=area.ci, null_value=0, note="mean corrected accuracy over ln turns", **at)
        judge.info("misfit", curve.misfit, note="largest distance of an accuracy from the curve", **at)

    lines = {f"{bench.subject.name}, seed {seed}": turns_of(model) for seed, model, _ in taught}
    peer = taught_peer(bench, words)
    if peer is not None:
        beside = turns_of(bench.once(("taught", peer.directory), peer.model))
        score = beside.persistence(peer.seed).score
        judge.info("peer_score", score.turns.value, ci=score.turns.ci, unit="turns", case="GPT2",
                   note=CENSORED[score.censored], seed=peer.seed)  # fmt: skip
        lines[f"GPT2, seed {peer.seed}"] = beside
    publish_figure("accuracy-over-turns", turns_figure(lines))
