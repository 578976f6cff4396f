"""Known answers of G1: a causal toy that must show no leak, and leaky ones that must."""

import torch
from torch import Tensor, nn

from harness.known_answers import known_answer
from harness.soundness import batch_independence, causality

VOCAB, LENGTH = 11, 8


class _RunningMean(nn.Module):
    """Logits from the mean of the embeddings so far; ``ahead`` shifts it, ``mixed`` adds the mean of the batch."""

    def __init__(self, ahead: int = 0, mixed: bool = False) -> None:
        super().__init__()
        self.ahead, self.mixed = ahead, mixed
        generator = torch.Generator().manual_seed(0)
        self.weight_VD = nn.Parameter(torch.randn(VOCAB, 5, generator=generator, dtype=torch.float64))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.weight_VD[tokens_BT].roll(-self.ahead, 1)
        if self.mixed:
            x_BTD = x_BTD + 1e-3 * x_BTD.mean(0, keepdim=True)
        count_T1 = torch.arange(1, LENGTH + 1, dtype=torch.float64)[:, None]
        return (x_BTD.cumsum(1) / count_T1) @ self.weight_VD.T


def _tokens() -> Tensor:
    return torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@known_answer("G1")
def a_mask_that_is_off_by_one_leaks() -> None:
    """A causal mean shows no leak and an effect; shifted by one position it leaks."""
    sound = causality(_RunningMean(), _tokens(), (1, 4, LENGTH - 1), VOCAB)
    assert sound.leak == 0, "a causal model must show no leak"
    assert sound.effect > 0, "an edit must have an effect"
    assert causality(_RunningMean(ahead=1), _tokens(), (1, 4, LENGTH - 1), VOCAB).leak > 0, "an off-by-one mask leaks"


@known_answer("G1")
def a_batch_mean_leaks_between_rows() -> None:
    """Rows of the causal mean ignore each other; a thousandth of the batch mean shows."""
    assert batch_independence(_RunningMean(), _tokens(), VOCAB).leak == 0, "independent rows must show no leak"
    assert batch_independence(_RunningMean(mixed=True), _tokens(), VOCAB).leak > 0, "a batch mean leaks between rows"
