"""The figure of a scaling fit: loss over size at each length, the law, and the run that it predicted."""

import numpy as np

from harness.figures import LineFigure
from harness.graduation.predictions import Prediction
from harness.metrics.scaling import Fit, Runs

LAW_POINTS = 12


def scaling_figure(fit: Fit, prediction: Prediction, held_out: Runs) -> LineFigure:
    """Loss over parameters, a panel a length; the held-out run with its prediction is in the panel of its length."""
    runs, panels = fit.runs, {}
    [size], [target] = held_out.sizes.tolist(), held_out.tokens.tolist()
    grid = np.geomspace(runs.sizes.min(), size, LAW_POINTS)
    for tokens in np.unique(runs.tokens):
        there = runs.tokens == tokens
        order = np.argsort(runs.sizes[there], kind="stable")
        measured = zip(runs.sizes[there][order].tolist(), runs.losses[there][order].tolist(), strict=True)
        lines = {"trained": list(measured), "law": [(float(n), fit.law.loss(n, tokens)) for n in grid]}
        if tokens == target:
            lines["predicted (90 %)"] = [(size, prediction.low), (size, prediction.value), (size, prediction.high)]
            lines["held out"] = [(size, float(held_out.losses[0]))]
        panels[f"{tokens:,.0f} tokens"] = lines
    return LineFigure("Loss over size", "parameters", "nats a token", panels, x_log=True)
