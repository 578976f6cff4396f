"""From the log of a training to its learning curve: validation loss against compute."""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.dynamics import TrainingLog
from harness.figures import LineFigure
from harness.metrics.efficiency import LearningCurve


def learning_curve(log: TrainingLog, cost_per_step: float) -> LearningCurve:
    """Validation loss against ``steps * cost_per_step``, warm-up included, since it is paid for like any other step.

    The evaluation before the first update is left out: the logarithm of no compute is minus infinity. Raises
    ``ValueError`` for a training with too few evaluations.
    """
    rows = [row for row in log.of_kind("eval") if row["step"] > 0]
    steps_E = np.array([row["step"] for row in rows], dtype=np.float64)
    return LearningCurve(steps_E * cost_per_step, np.array([row["val_loss"] for row in rows], dtype=np.float64))


def flops_per_step(log: TrainingLog, training_flops_per_token: float) -> float:
    """Operations of one update, all of its tokens."""
    [header] = log.of_kind("header")
    return float(header["batch_tokens"]) * training_flops_per_token


def curves_figure(curves: Mapping[str, Sequence[LearningCurve]]) -> LineFigure:
    """Smoothed loss against compute, one panel a model and one line a seed."""
    return LineFigure(
        "Validation loss against training compute",
        "operations",
        "nats a token, smoothed",
        {
            name: {
                f"training {index}": list(zip(curve.compute.tolist(), curve.smoothed().tolist(), strict=True))
                for index, curve in enumerate(of_model)
            }
            for name, of_model in curves.items()
        },
        x_log=True,
    )
