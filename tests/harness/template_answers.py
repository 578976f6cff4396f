"""Made-up answers to questions that share templates."""

import math

import numpy as np


def answers_by_template(random, p, icc, templates=40, each=10, sets=1):
    """Right and wrong ``[sets, templates, each]``: beta-binomial with this mean and intraclass correlation."""
    rate = (1 - icc) / icc if icc else math.inf
    chance = random.beta(p * rate, (1 - p) * rate, (sets, templates)) if icc else np.full((sets, templates), p)
    return (random.random((sets, templates, each)) < chance[..., None]).astype(float)
