"""The registry: names, scales, and the size table. Nothing here imports torch; ``get_model`` does, when called.

Total parameters, tied embeddings counted once, are within 2 % of the nominal size at a vocabulary of 16,384. At
another vocabulary the layers stay as they are and only the embedding changes, so the nominal size no longer holds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.config import (
    AttentionConfig,
    FusionConfig,
    Mamba2Config,
    ModelConfig,
    Rwkv6Config,
    did_you_mean,
)

if TYPE_CHECKING:
    from models.hybrid import HybridModel

NOMINAL_VOCAB_SIZE = 16_384
SCALES = {"3.5M": 3_500_000, "8M": 8_000_000, "30M": 30_000_000, "125M": 125_000_000}


class UnknownModelError(ValueError):
    """No model of that name. The message lists the names."""


class UnknownScaleError(ValueError):
    """No such scale for that model. The message lists the scales."""


@dataclass(frozen=True)
class _Shape:
    """One cell of the size table. ``ranks`` are RWKV-6's (mix, decay); ``d_ff`` None means 4 d_model."""

    d_model: int
    num_layers: int
    ranks: tuple[int, int] | None = None
    d_ff: int | None = None
    num_positions: int | None = None


# Widths are the same for all models of a scale. Depth is the first knob, the ranks of RWKV-6's adapters the second;
# the feed-forward is narrower than 4 d_model only where the two cannot meet 2 % (docs/adr/0003-models.md).
_SHAPES: dict[str, dict[str, _Shape]] = {
    "gains": {
        "3.5M": _Shape(128, 4, (16, 32)),
        "8M": _Shape(192, 6, (32, 64)),
        "30M": _Shape(384, 8, (16, 32)),
        "125M": _Shape(640, 14, (32, 64)),
    },
    "residual_projection": {
        "3.5M": _Shape(128, 4, (8, 16)),
        "8M": _Shape(192, 6, (16, 32)),
        "30M": _Shape(384, 7, (64, 128)),
        "125M": _Shape(640, 13, (64, 64)),
    },
    "square_projection": {
        "3.5M": _Shape(128, 4, (8, 16), d_ff=448),
        "8M": _Shape(192, 6, (8, 16)),
        "30M": _Shape(384, 7, (32, 64)),
        "125M": _Shape(640, 13, (16, 32)),
    },
    "rwkv": {
        "3.5M": _Shape(128, 6, (16, 32)),
        "8M": _Shape(192, 9, (16, 64)),
        "30M": _Shape(384, 12, (16, 32)),
        "125M": _Shape(640, 21, (16, 32)),
    },
    "mamba": {
        "3.5M": _Shape(128, 6, d_ff=480),
        "8M": _Shape(192, 9),
        "30M": _Shape(384, 11),
        "125M": _Shape(640, 20),
    },
    "attention": {
        "3.5M": _Shape(128, 7, d_ff=480, num_positions=1024),
        "8M": _Shape(192, 10, num_positions=2048),
        "30M": _Shape(384, 13, num_positions=2048),
        "125M": _Shape(640, 23, num_positions=4096),
    },
    "sequence_4_10": {
        "3.5M": _Shape(128, 6, (8, 16)),
        "8M": _Shape(192, 9, (32, 64)),
        "30M": _Shape(384, 11, (32, 64)),
        "125M": _Shape(640, 20, (32, 64)),
    },
    "sequence_1_30": {
        "3.5M": _Shape(128, 6, (8, 16)),
        "8M": _Shape(192, 9, (32, 64)),
        "30M": _Shape(384, 11, (32, 64)),
        "125M": _Shape(640, 20, (32, 64)),
    },
}


@dataclass(frozen=True)
class _Entry:
    """What a name stands for: its family in the size table, and its fusion or its layer pattern (RWKV-6 : Mamba-2)."""

    family: str
    fusion: FusionConfig | None = None
    ratio: tuple[int, int] | None = None


_REGISTRY: dict[str, _Entry] = {
    "RWKV6": _Entry("rwkv"),
    "MAMBA2": _Entry("mamba"),
    "GPT2": _Entry("attention"),
    "HY": _Entry("gains", FusionConfig("learned_gains")),
    "WS": _Entry("gains", FusionConfig("learned_scalar")),
    "RF": _Entry("residual_projection", FusionConfig("residual_projection")),
    "CP": _Entry("square_projection", FusionConfig("concat_projection")),
    "GF": _Entry("gains", FusionConfig("position_gate", 0.5)),
    "GF-MH": _Entry("gains", FusionConfig("position_gate", 0.3)),
    "GF-RH": _Entry("gains", FusionConfig("position_gate", 0.7)),
    "GF-XM": _Entry("gains", FusionConfig("position_gate", 0.03)),
    "GF-XR": _Entry("gains", FusionConfig("position_gate", 0.97)),
    "HGF": _Entry("square_projection", FusionConfig("channel_gate", 0.5)),
    "HGF-MH": _Entry("square_projection", FusionConfig("channel_gate", 0.3)),
    "HGF-RH": _Entry("square_projection", FusionConfig("channel_gate", 0.7)),
    "SEQ-4R10M": _Entry("sequence_4_10", ratio=(4, 10)),
    "SEQ-1R30M": _Entry("sequence_1_30", ratio=(1, 30)),
}
# One name fixes its scale: the model that an earlier registry called by its size.
_FIXED_SCALE = {"8M": ("GF-MH", "8M")}


def list_models() -> list[str]:
    """Every name that ``get_model`` knows."""
    return [*_REGISTRY, *_FIXED_SCALE]


def model_config(name: str, scale: str = "3.5M", vocab_size: int = NOMINAL_VOCAB_SIZE) -> ModelConfig:
    """The configuration of a registry model. Imports no torch.

    The name ``8M`` is GF-MH at 8M whatever the scale says. Raises ``UnknownModelError``, ``UnknownScaleError`` or
    ``ConfigError``.
    """
    name, scale = _FIXED_SCALE.get(name, (name, scale))
    if name not in _REGISTRY:
        known = list_models()
        raise UnknownModelError(
            f"no model is called {name!r}.{did_you_mean(name, tuple(known))} Known: {', '.join(known)}"
        )
    if scale not in SCALES:
        raise UnknownScaleError(
            f"no scale is called {scale!r} (model {name}).{did_you_mean(scale, tuple(SCALES))} "
            f"Known: {', '.join(SCALES)}"
        )
    entry = _REGISTRY[name]
    shape = _SHAPES[entry.family][scale]
    layers = _layers(entry, shape.num_layers)
    return ModelConfig(
        name=name,
        scale=scale,
        vocab_size=vocab_size,
        d_model=shape.d_model,
        d_ff=4 * shape.d_model if shape.d_ff is None else shape.d_ff,
        layers=layers,
        rwkv=None if shape.ranks is None else Rwkv6Config(_head_size(scale), *shape.ranks),
        mamba=Mamba2Config() if any("mamba" in layer for layer in layers) else None,
        attention=None
        if shape.num_positions is None
        else AttentionConfig(shape.d_model // _head_size(scale), shape.num_positions),
        fusion=entry.fusion,
    )


def get_model(name: str, scale: str = "3.5M", vocab_size: int = NOMINAL_VOCAB_SIZE) -> "HybridModel":
    """A freshly initialised model, drawn from torch's global generator. Errors: see ``model_config``."""
    config = model_config(name, scale, vocab_size)
    from models.hybrid import HybridModel

    return HybridModel(config)


def _head_size(scale: str) -> int:
    """Of RWKV-6 and of attention: 64, but 32 at the smallest width, so that there are 4 heads and not 2."""
    return 32 if scale == "3.5M" else 64


def _layers(entry: _Entry, num_layers: int) -> tuple[tuple[str, ...], ...]:
    if entry.fusion is not None:
        return (("rwkv", "mamba"),) * num_layers
    if entry.ratio is not None:
        return sequence_pattern(*entry.ratio, num_layers)
    return ((entry.family,),) * num_layers


def sequence_pattern(rwkv_parts: int, mamba_parts: int, num_layers: int) -> tuple[tuple[str, ...], ...]:
    """One branch a layer: RWKV-6 layers in the given ratio, at least one, spread evenly, each opening a run of Mamba-2.

    A stack too shallow for the exact ratio gets the nearest one: 4:10 in 6 layers is R M M R M M.
    """
    num_rwkv = max(1, round(num_layers * rwkv_parts / (rwkv_parts + mamba_parts)))
    opens = {-(-index * num_layers // num_rwkv) for index in range(num_rwkv)}
    return tuple(("rwkv",) if index in opens else ("mamba",) for index in range(num_layers))
