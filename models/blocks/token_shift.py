"""RWKV's token shift: what the previous position held."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.blocks.lengths import last_inputs


def shift_difference(x_BTD: Tensor, previous_BD: Tensor | None) -> Tensor:
    """``x_{t-1} - x_t`` ``[B,T,D]``; ``previous_BD`` is the input before the first position, None for zeros."""
    if previous_BD is None:
        shifted_BTD = F.pad(x_BTD, (0, 0, 1, -1))
    else:
        shifted_BTD = torch.cat((previous_BD.to(x_BTD.dtype)[:, None], x_BTD[:, :-1]), dim=1)
    return shifted_BTD - x_BTD


def last_input(x_BTD: Tensor, previous_BD: Tensor | None, lengths_B: Tensor | None) -> Tensor:
    """What the next position will see: the last real input ``[B,D]``; ``previous_BD`` where a row has none."""
    if lengths_B is None:
        return x_BTD[:, -1]
    return last_inputs(x_BTD, lengths_B, 1, None if previous_BD is None else previous_BD[:, None])[:, 0]
