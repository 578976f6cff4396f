"""What the state checks share: the weights they look at."""

import pytest


@pytest.fixture(params=["fresh", "trained"])
def weights(request, bench):
    """``(model, where)`` of one untrained model, no part of it silent, or of everything trained.

    ``where`` is what a record says of it, its case among that.
    """
    if request.param == "fresh":
        seed = bench.seeds[0]
        return [(bench.untrained(seed), {"seed": seed, "case": "fresh", "step": 0})]
    return [(model, where | {"case": "trained"}) for _, model, where in request.getfixturevalue("trained")]
