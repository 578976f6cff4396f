"""Kernels: wkv6, SSD, causal conv1d, selective scan, cross entropy and norms, each with an oracle and fast backends.

Importing this package does not import torch; the first use of an operation does.
"""

from typing import TYPE_CHECKING, Any

from kernels import backends

if TYPE_CHECKING:
    from kernels.api import (
        KernelInputError,
        causal_conv1d,
        cross_entropy,
        fuses_mamba2,
        gated_rms_norm,
        mamba2,
        rms_norm,
        selective_scan,
        ssd,
        wkv6,
    )

__all__ = [
    "KernelInputError",
    "backends",
    "causal_conv1d",
    "cross_entropy",
    "fuses_mamba2",
    "gated_rms_norm",
    "mamba2",
    "rms_norm",
    "selective_scan",
    "ssd",
    "wkv6",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}; it has {', '.join(__all__)}")
    import kernels.api

    return getattr(kernels.api, name)
