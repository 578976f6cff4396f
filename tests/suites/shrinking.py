"""A user's model that gets worse with its size: sound at 3.5M, its logits blown up beyond."""

import torch

from models import get_model


def factory(scale: str, vocab_size: int) -> torch.nn.Module:
    """GF-MH; beyond 3.5M its last norm is 30 times too large and does not learn."""
    model = get_model("GF-MH", scale, vocab_size)
    if scale != "3.5M":
        model.final_norm.register_forward_hook(lambda _, __, x_BTD: 30 * x_BTD)
    return model
