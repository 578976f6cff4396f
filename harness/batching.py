"""How many rows a measurement gives a model at once."""

import torch

GPU_TOKENS = 16_384
"""Of one pass on a GPU: as many as a training update has. Their logits over 16,384 classes take 1 GiB in fp32."""


def rows_at_once(on_cpu: int, length: int, device: str | torch.device) -> int:
    """Rows of ``length`` tokens for one pass: ``on_cpu`` on a CPU, and on a GPU as many more as ``GPU_TOKENS`` allow.

    A pass of a few rows takes a GPU as long as one of many: it waits for its launches.
    """
    if torch.device(device).type == "cpu":
        return on_cpu
    return max(on_cpu, GPU_TOKENS // length)


GPU_VALUES = 1 << 25
"""Of one step of a sum on a GPU: 256 MiB in fp64, and what is between takes a few times that."""


def summed_at_once(on_cpu: int, each: int, device: str | torch.device) -> int:
    """Slices of ``each`` values for one step of a sum: ``on_cpu`` on a CPU, where they are to stay in its cache.

    A GPU is given as many more as ``GPU_VALUES`` allow, for the same reason as above.
    """
    if torch.device(device).type == "cpu":
        return on_cpu
    return max(on_cpu, GPU_VALUES // each)
