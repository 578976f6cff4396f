"""Known answers of G4: gradient ratios and the shares of the branches."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from harness.known_answers import known_answer
from harness.metrics import balance, gradients
from harness.metrics.expect import expect, expect_between


class Twins(nn.Module):
    """Two branches alike in everything, ``y = scale W_1 x + W_2 x``; ``split`` writes each W as (c W) / c."""

    def __init__(self, width: int = 6, scale: float = 1.0, split: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(width, width, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
        self.first = nn.Parameter(split * weight)
        self.second = nn.Parameter(weight.clone())
        self.scale, self.split = scale, split

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``[B, D]`` to ``[B, D]``."""
        return self.scale * (x_BD @ self.first) / self.split + x_BD @ self.second

    def gradient_ratio(self) -> float:
        """Gradient norm of the first branch over that of the second, for a loss that is linear in the output."""
        x_BD = torch.randn(8, 6, generator=torch.Generator().manual_seed(13), dtype=torch.float64)
        self.zero_grad()
        self(x_BD).sum().backward()
        return float(gradients.gradient_norm([self.first]) / gradients.gradient_norm([self.second]))


@known_answer("G4")
def twin_branches_have_equal_gradients() -> None:
    """Twins give 1; a loss path scaled by a gives exactly a."""
    expect("ratio of twins", Twins().gradient_ratio(), 1.0)
    expect("ratio with one path scaled by 4", Twins(scale=4.0).gradient_ratio(), 4.0)
    # negative control: a detached branch has no gradient and no ratio near 1
    expect("ratio with one path cut", Twins(scale=0.0).gradient_ratio(), 0.0)


@known_answer("G4")
def the_gradient_ratio_is_no_contribution() -> None:
    """Pitfall to print beside it: W written as (4 W) / 4 is the same model and moves the ratio to 1/4."""
    plain, rewritten = Twins(), Twins(split=4.0)
    x_BD = torch.randn(8, 6, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    expect("change of the output", float((plain(x_BD) - rewritten(x_BD)).detach().abs().max()), 0.0)
    expect("change of the ratio", rewritten.gradient_ratio() / plain.gradient_ratio(), 0.25)


@known_answer("G4")
def the_ratio_is_a_median_of_the_last_steps() -> None:
    """Constant ratios have an interval of no width; early steps and single explosions do not count."""
    mamba = np.exp(np.random.default_rng(15).standard_normal(400))
    rwkv = 0.25 * mamba
    rwkv[:200] = 1e6
    rwkv[250] = 1e6
    ratio = gradients.gradient_ratio(rwkv, mamba, seed=0)
    expect("median ratio", ratio.value, 0.25, 1e-12)
    expect("width of its interval", ratio.high - ratio.low, 0.0, 1e-12)
    dead = gradients.gradient_ratio(np.zeros(200), np.ones(200), seed=0)
    expect("ratio of a branch without gradient", dead.value, 0.0)
    nothing = gradients.gradient_ratio(np.zeros(200), np.zeros(200), seed=0)
    expect("ratio of two dead branches (negative control)", nothing.value, math.nan)
    expect("per parameter, 4 to 1", gradients.per_parameter_ratio(2.0, 400, 100), 1.0)


@known_answer("G4")
def activation_shares_follow_the_variance() -> None:
    """Independent writes of deviation 3 and 1 share 9 : 1, whatever constant is added; cancellation is negative."""
    noise = torch.randn(2, 16, 64, 8, generator=torch.Generator().manual_seed(16), dtype=torch.float64)
    documents = np.arange(16) // 2
    shares = balance.activation_shares({"rwkv": 3 * noise[0] + 50, "mamba": noise[1]}, documents)
    expect("share of deviation 3 beside 1", shares["rwkv"].value, 0.9, 0.02)
    expect("sum of the shares", shares["rwkv"].value + shares["mamba"].value, 1.0, 1e-12)
    cancelling = balance.activation_shares({"rwkv": noise[0], "mamba": -noise[0] / 2}, documents)
    expect("share of what is half cancelled", cancelling["rwkv"].value, 2.0, 1e-9)
    expect("share of what cancels (negative control)", cancelling["mamba"].value, -1.0, 1e-9)
    constant = balance.activation_shares({"rwkv": noise[0], "mamba": 0 * noise[0] + 7}, documents)
    expect("share of a constant write", constant["mamba"].value, 0.0, 1e-9)


@known_answer("G4")
def ratios_and_shares_agree() -> None:
    """1.5, 4 and 9 to 1 are .40, .20 and .10, either way round; two dead branches have no share."""
    for ratio, share in ((1.5, 0.4), (4.0, 0.2), (9.0, 0.1)):
        expect(f"smaller share at {ratio:g}", balance.smaller_share(ratio), share, 1e-12)
        expect(f"smaller share at 1/{ratio:g}", balance.smaller_share(1 / ratio), share, 1e-12)
        expect(f"ratio at share {share:g}", balance.ratio_of_share(share), ratio, 1e-9)
    expect("share of nothing", balance.smaller_share(math.nan), math.nan)
    expect_between("share of a dead branch", balance.smaller_share(math.inf), 0.0, 0.0)
