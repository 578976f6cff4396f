"""What D3 draws: the cost of each ablation, and how long a swapped state is felt."""

from harness.figures import LineFigure, MatrixFigure
from harness.interaction import StateAblation


def figures(ablation: StateAblation, title: str) -> dict[str, LineFigure | MatrixFigure]:
    """The figures of one model, by name."""
    felt = {
        branch: [(float(place), value) for place, value in enumerate(values, 1)]
        for branch, values in ablation.kl_by_token.items()
    }
    columns = [
        (effect.replacement, effect.kinds, effect.horizon)
        for effect in ablation.effects
        if effect.branches == ablation.branches[0]
    ]
    return {
        "ablation-kl-by-token": LineFigure(
            f"Another document's state: how long it is felt ({title})",
            "token after the swap",
            "KL(clean || swapped), nats",
            {"": felt},
        ),
        "ablation-loss": MatrixFigure(
            f"What an ablated state costs ({title})",
            "replacement, states, tokens",
            "branch",
            "change of the loss, nats/token",
            [[ablation.effect(branch, *column).delta.value for column in columns] for branch in ablation.branches],
            x_ticks=[f"{replacement}\n{kinds}\n{horizon}" for replacement, kinds, horizon in columns],
            y_ticks=list(ablation.branches),
            diverging=True,
        ),
    }
