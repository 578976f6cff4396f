"""STOP: no stopping criterion was met while the model trained: a run that should have been stopped is no evidence."""

import pytest

pytestmark = pytest.mark.check("STOP")


def test_no_stopping_criterion_was_met(runs, bench, judge):
    for run in runs:
        found = bench.stop_criteria(run)
        for criterion, (severity, evidence) in found.severity.items():
            judge("severity", severity, case=criterion, note=evidence, **bench.where(run))
        for criterion, reason in found.not_judged.items():
            judge.info("not_judged", 0, case=criterion, note=reason, **bench.where(run))
