"""The letters of shape suffixes: ``r_BTHK`` is a tensor ``[B, T, H, K]``; ``bind`` checks them.

B  batch                     T  positions                 H  heads
K  RWKV-6 key size           V  RWKV-6 value size
P  Mamba-2 head size         N  state size of Mamba-2 and Mamba-1       G  groups of heads that share B and C
C  channels                  w  width of a convolution                  D  width of a norm
I  inner width of Mamba-2    J  columns of its input projection, padding included
In a loss, N counts targets and V is the vocabulary.

The tensors ``B`` and ``C`` of Mamba carry the names of the paper; as suffixes the same letters mean batch and channels.
"""

from collections.abc import Mapping

from torch import Tensor


class KernelInputError(ValueError):
    """The inputs of a kernel do not fit together. The message says which and what was expected."""


def bind(op: str, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes by letter, read off names such as ``r_BTHK``.

    Raises ``KernelInputError`` when two tensors disagree about a letter, a device or the number of dimensions,
    when one is not floating point, or when one is empty.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        letters = name.rpartition("_")[2]
        shape = list(tensor.shape)
        if len(shape) != len(letters):
            raise KernelInputError(
                f"{op}: {name} must have {len(letters)} dimensions [{', '.join(letters)}], but its shape is {shape}"
            )
        if not tensor.is_floating_point():
            raise KernelInputError(f"{op}: {name} must be floating point, but is {tensor.dtype}; cast it first")
        if tensor.device != first.device:
            raise KernelInputError(
                f"{op}: {name} is on {tensor.device} and {first_name} on {first.device}; move both to one device"
            )
        for letter, size in zip(letters, shape, strict=True):
            if size == 0:
                raise KernelInputError(f"{op}: {name} has shape {shape}; {letter} must be at least 1")
            if sizes.setdefault(letter, size) != size:
                raise KernelInputError(
                    f"{op}: {name} has {letter}={size} (shape {shape}), "
                    f"but {owner[letter]} has {letter}={sizes[letter]}"
                )
            owner.setdefault(letter, name)
    return sizes
