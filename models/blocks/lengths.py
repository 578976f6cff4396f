"""Rows of unequal length: row b holds ``lengths_B[b] >= 0`` real positions, then padding up to T."""

import torch
import torch.nn.functional as F
from torch import Tensor


def padding_mask(lengths_B: Tensor, num_positions: int) -> Tensor:
    """True at padding, ``[B,T]``."""
    return torch.arange(num_positions, device=lengths_B.device) >= lengths_B[:, None]


def last_inputs(x_BTC: Tensor, lengths_B: Tensor, count: int, before_BnC: Tensor | None) -> Tensor:
    """The last ``count`` real inputs of each row, oldest first, ``[B,count,C]``.

    ``before_BnC`` holds the ``count`` inputs before the first position, None for zeros: a short row reaches into them.
    """
    if before_BnC is None:
        joined_BTC = F.pad(x_BTC, (0, 0, count, 0))
    else:
        joined_BTC = torch.cat((before_BnC.to(x_BTC.dtype), x_BTC), dim=1)
    index_Bn = lengths_B[:, None] + torch.arange(count, device=lengths_B.device)
    return joined_BTC.gather(1, index_Bn[..., None].expand(-1, -1, x_BTC.shape[-1]))
