"""S3: the same text gives the same bits again, whatever the process did in between."""

import pytest

pytestmark = pytest.mark.check("S3")

BATCH, LENGTH = 3, 80


def test_a_second_pass_gives_the_same_bits(weights, bench, judge, require_hooks):
    from harness.determinism import repetitions

    for model, where in weights:
        require_hooks(model, "state")
        for index, again in enumerate(repetitions(model, bench.validation_tokens(BATCH, LENGTH)), start=2):
            case = {**where, "case": f"{where['case']}, pass {index}"}
            bits = "all bits agree" if again.identical else "some bits differ"
            judge("logits_difference", again.logits, note=bits, **case)
            judge("state_difference", again.state, note=f"{bits}; most in {again.worst}", **case)
