"""Measurements of trained weights, kept in the store: a second session does not measure the same thing again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import nn

from harness.hashing import source_sha256
from harness.store import Store

T = TypeVar("T")

KIND = "measurements"
RESULT = "result.json"

# What of the source decides a measurement
SOURCE = ("kernels", "models", "harness", "fixtures")


@cache
def _source() -> str:
    """As it is when the first measurement of this process is asked for."""
    return source_sha256(SOURCE)


def weights_sha256(model: nn.Module) -> str:
    """Hash of all tensors of a model, names, dtypes and shapes included; the device does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measure_or_load(
    store: Store, fields: Mapping[str, Any], result: type[T], model: nn.Module, measure: Callable[[], T]
) -> T:
    """What ``measure`` finds, from the store when it was found before for equal ``fields``, weights and source.

    ``result`` is a dataclass of numbers, texts, lists, tuples and mappings of them; NaN and infinities survive.
    """
    adapter = TypeAdapter(result)
    key = {
        **fields,
        "weights_sha256": weights_sha256(model),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "source_sha256": _source(),
    }

    def build(directory: Path) -> None:
        # not canonical_json: a measurement may be NaN, and its keys are not hashed
        (directory / RESULT).write_text(json.dumps(adapter.dump_python(measure())), encoding="utf8")

    entry = store.get_or_build(KIND, key, build)
    return adapter.validate_python(json.loads((entry.path / RESULT).read_text(encoding="utf8")))
