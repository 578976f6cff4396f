"""FIX: what three remedies do to a branch that is not used, and whether the diagnostics then say otherwise."""

import pytest

pytestmark = pytest.mark.check("FIX")


@pytest.fixture
def arms(bench, judge):
    """The runs without a remedy and with each of three, read by every method."""
    from fixtures.fix_readings import arms
    from fixtures.studies import require_seeds

    if bench.checkpoint is not None:
        judge.missing(f"{bench.checkpoint} is a checkpoint, and this study trains")
    require_seeds(bench)
    return bench.once(("arms of remedies",), lambda: arms(bench))


def test_every_arm_is_trainings_of_its_own(arms, judge):
    from fixtures.fix_readings import late_mean, same_trainings
    from fixtures.fix_study import CLIP, COUPLING, UNTREATED

    for name, arm in arms.items():
        same = len(arm.runs) - len({run.checkpoint_sha256 for run in arm.runs})
        judge.holds("seeds_differ", not same, case=name, value=same, unit="trainings")
        if name == UNTREATED:
            continue
        idle = same_trainings(arm, arms[UNTREATED])
        judge.holds("remedy_acts", not idle, case=name, value=len(idle), unit="trainings", note="no bit differs")
    for name, column, unit in ((CLIP, "state_grad_clipped", "1"), (COUPLING, "coupling_loss", "nats^2")):
        for run in arms[name].runs:
            value = late_mean(run, column)
            judge.info(column, value, unit=unit, case=name, seed=run.seed, note="mean of the second half")


def test_what_the_remedies_change(arms, bench, judge, publish_figure):
    import math

    from fixtures.fix_readings import FELT, SHARES, loss_change, share_change, status_words, unread_note, verdict_of
    from fixtures.fix_study import BRANCH, UNTREATED
    from fixtures.study_readings import validation_loss
    from harness.metrics.intervals import t_interval

    bare = arms[UNTREATED]
    felt = [reading.shares[FELT].value for arm in arms.values() for reading in arm.readings]
    losses = {name: [validation_loss(run) for run in arm.runs] for name, arm in arms.items()}
    numbers = [*felt, *(loss for row in losses.values() for loss in row)]
    if judge.holds("outcome_is_finite", all(map(math.isfinite, numbers))) == "FAIL":
        return
    for name, arm in arms.items():
        at = {"case": name, "branch": BRANCH}
        loss = t_interval(losses[name])
        judge.info("val_loss", loss.value, ci=loss.ci, unit="nats/token", n=loss.n, case=name, note="over seeds")
        for share in SHARES:
            note = unread_note(arm, bare, share)
            judge.info(f"{share}_unread", len(arm.unread(share)), unit="trainings", note=note, **at)
            for run, reading in zip(arm.runs, arm.readings, strict=True):
                if share in reading.shares:
                    value = reading.shares[share]
                    where = bench.where(run) | at | {"n": value.n, "n_clusters": value.n_clusters}
                    judge.info(share, value.value, ci=value.ci, note="over documents", **where)
            if values := arm.values(share):
                mean = t_interval([value.value for value in values])
                judge.info(f"mean_{share}", mean.value, ci=mean.ci, n=mean.n, note="over seeds", **at)
        for diagnostic, words in status_words(arm, bench.subject.scale).items():
            judge.info(f"{diagnostic}_fails", words.count("FAIL"), unit="trainings", note=", ".join(words), **at)
        if name == UNTREATED:
            continue
        for share in SHARES:
            found = share_change(arm, bare, share)
            if found is not None:
                note = "treated less untreated, over seeds and documents"
                n = {"n": found.difference.n, "n_clusters": found.difference.n_clusters, "null_value": 0}
                judge.info(f"{share}_change", found.difference.value, ci=found.difference.ci, note=note, **n, **at)
        cost = loss_change(arm, bare)
        judge.info("loss_change", cost.difference.value, ci=cost.difference.ci, unit="nats/token", null_value=0, **at)
        verdict = verdict_of(arm, bare)
        odds, (low, high) = verdict.difference, verdict.strict
        judge.info(f"{FELT}_log_odds_change", odds.value, ci=odds.ci, unit="nats", null_value=0, n=odds.n, **at)
        note = f"{verdict.word}: change of the log odds [{low:+.3g}, {high:+.3g}], for all remedies together"
        judge.info("verdict", {"moved": 1, "not moved": 0, "worse": -1}[verdict.word], null_value=0, note=note, **at)
    publish_figure("fix-and-revalidate", _figure(bench, arms, losses))


def _figure(bench, arms, losses):
    from fixtures.fix_readings import SHARES
    from fixtures.fix_study import BRANCH
    from harness.figures import LineFigure

    columns = {share: [[value.value for value in arm.values(share)] for arm in arms.values()] for share in SHARES}
    mean = sum(map(sum, losses.values())) / sum(map(len, losses.values()))
    columns[f"loss less {mean:.3f} nats"] = [[loss - mean for loss in row] for row in losses.values()]
    panels = {
        name.replace("_", " "): {
            f"seed {seed}": [(place, row[index]) for place, row in enumerate(rows)]
            for index, seed in enumerate(bench.seeds)
        }
        for name, rows in columns.items()
        if all(rows)
    }
    # by the axis, where there is room for several lines: a title is one
    places = ", ".join(f"{place} {name}" for place, name in enumerate(arms))
    title = f"Remedies for {BRANCH} ({bench.subject.name})"
    return LineFigure(title, f"arm: {places}", "share of the branch, or nats", panels)
