"""What the comparisons of trainings share: the other training of each pair."""

import pytest


@pytest.fixture
def finished_runs_of(bench, judge):
    """``finished_runs_of(recipe)``: its runs, all of which reached their last step. MISSING otherwise."""
    from fixtures.subjects import SubjectError

    def obtain(recipe):
        try:
            found = bench.runs_of(recipe)
        except SubjectError as error:
            judge.missing(f"the trainings of the recipe {recipe!r} cannot be had: {error}")
        for run in found:
            if run.outcome.status != "finished":
                judge.missing(
                    f"{run.subject.name} at {run.subject.scale}, seed {run.seed}: the training {run.outcome.status}: "
                    f"{run.outcome.reason}"
                )
        return found

    return obtain


@pytest.fixture
def peer_runs(bench, judge, finished_runs_of):
    """One finished run of GPT2 a seed, in the order of the seeds. NA for GPT2 itself."""
    if not bench.trainings("peer"):
        judge.na("the subject is the model that others are compared with")
    return finished_runs_of("peer")
