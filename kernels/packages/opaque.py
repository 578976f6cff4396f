"""Operations written in Python that neither autograd nor a compiler looks into.

They call kernels of packages that register nothing themselves: Dynamo would trace into them and gets them wrong (a hook
that zeroes a buffer before a launch is refused or, in older versions, ignored).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def _library() -> torch.library.Library:
    return torch.library.Library("groundthink", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, kernel: Callable[..., Any]) -> None:
    """Make ``groundthink::<schema>`` an operation that runs ``kernel``, on any device.

    The kernel changes no input, returns no view of one, and works on the current stream.
    """
    name = schema.partition("(")[0]
    _library().define(schema)  # type: ignore[no-untyped-call]
    _library().impl(name, kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
