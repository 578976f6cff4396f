"""The registry: names, scales, and the size table. Nothing here imports torch; ``get_model`` does, when called.

Total parameters, tied embeddings counted once, are within 2 % of the nominal size at a vocabulary of 16,384. At
another vocabulary the layers stay as they are and only the embedding changes, so the nominal size no longer holds.

Beside the scales there are rungs: sizes below a scale that are trained to predict its loss and serve nothing else.
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
RUNGS = {
    "1.2M": 1_200_000,
    "1.6M": 1_600_000,
    "2.1M": 2_100_000,
    "2.7M": 2_700_000,
    "5.3M": 5_300_000,
    "16M": 16_000_000,
    "64M": 64_000_000,
}
# The sizes from which the loss of a scale is predicted, smallest first. Below 1M a vocabulary of 16,384 leaves nothing
# but the embedding.
LADDERS = {
    "3.5M": ("1.2M", "1.6M", "2.1M", "2.7M"),
    "8M": ("2.1M", "2.7M", "3.5M", "5.3M"),
    "30M": ("3.5M", "5.3M", "8M", "16M"),
    "125M": ("8M", "16M", "30M", "64M"),
}


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

# Rungs: widths between those of the scales. A step of width of 32 is coarse down here, so depth follows the size and
# the feed-forward takes up what is left.
_RUNG_SHAPES: dict[str, dict[str, _Shape]] = {
    "gains": {
        "1.2M": _Shape(64, 2, (8, 16), d_ff=96),
        "1.6M": _Shape(64, 5, (16, 64)),
        "2.1M": _Shape(96, 3, (8, 16), d_ff=256),
        "2.7M": _Shape(96, 5, (16, 32), d_ff=448),
        "5.3M": _Shape(160, 5, (16, 32), d_ff=608),
        "16M": _Shape(256, 8, (64, 64)),
        "64M": _Shape(512, 11, (16, 32), d_ff=1920),
    },
    "residual_projection": {
        "1.2M": _Shape(64, 2, (8, 16), d_ff=64),
        "1.6M": _Shape(64, 5, (16, 32), d_ff=288),
        "2.1M": _Shape(96, 3, (8, 16), d_ff=224),
        "2.7M": _Shape(96, 5, (16, 32), d_ff=416),
        "5.3M": _Shape(160, 5, (8, 16), d_ff=576),
        "16M": _Shape(256, 8, (32, 64)),
        "64M": _Shape(512, 10, (32, 64)),
    },
    "square_projection": {
        "1.2M": _Shape(64, 2, (8, 16), d_ff=64),
        "1.6M": _Shape(64, 5, (16, 32)),
        "2.1M": _Shape(96, 3, (8, 16), d_ff=192),
        "2.7M": _Shape(96, 5, (16, 32), d_ff=352),
        "5.3M": _Shape(160, 5, (8, 16), d_ff=512),
        "16M": _Shape(256, 8, (16, 32)),
        "64M": _Shape(512, 10, (16, 32), d_ff=1920),
    },
    "rwkv": {
        "1.2M": _Shape(64, 2, (16, 64)),
        "1.6M": _Shape(64, 8, (16, 32)),
        "2.1M": _Shape(96, 4, (8, 16), d_ff=416),
        "2.7M": _Shape(96, 8, (16, 32)),
        "5.3M": _Shape(160, 7, (16, 64)),
        "16M": _Shape(256, 13, (16, 32)),
        "64M": _Shape(512, 16, (8, 16)),
    },
    "mamba": {
        "1.2M": _Shape(64, 2, d_ff=320),
        "1.6M": _Shape(64, 8),
        "2.1M": _Shape(96, 4, d_ff=320),
        "2.7M": _Shape(96, 8),
        "5.3M": _Shape(160, 7),
        "16M": _Shape(256, 12, d_ff=1088),
        "64M": _Shape(512, 15, d_ff=2016),
    },
    "attention": {
        "1.2M": _Shape(64, 2, d_ff=192, num_positions=1024),
        "1.6M": _Shape(64, 10, num_positions=1024),
        "2.1M": _Shape(96, 4, d_ff=416, num_positions=1024),
        "2.7M": _Shape(96, 10, d_ff=352, num_positions=1024),
        "5.3M": _Shape(160, 8, d_ff=608, num_positions=2048),
        "16M": _Shape(256, 14, d_ff=1056, num_positions=2048),
        "64M": _Shape(512, 17, d_ff=2080, num_positions=4096),
    },
    "sequence_4_10": {
        "1.2M": _Shape(64, 2, (32, 64)),
        "1.6M": _Shape(64, 8, (16, 64)),
        "2.1M": _Shape(96, 4, (16, 32), d_ff=352),
        "2.7M": _Shape(96, 8, (8, 16)),
        "5.3M": _Shape(160, 7, (16, 64)),
        "16M": _Shape(256, 12, (64, 64)),
        "64M": _Shape(512, 15, (16, 64)),
    },
    "sequence_1_30": {
        "1.2M": _Shape(64, 2, (32, 64)),
        "1.6M": _Shape(64, 8, (32, 64)),
        "2.1M": _Shape(96, 4, (16, 32), d_ff=352),
        "2.7M": _Shape(96, 8, (8, 16)),
        "5.3M": _Shape(160, 7, (16, 64)),
        "16M": _Shape(256, 12, (8, 16), d_ff=1088),
        "64M": _Shape(512, 15, (8, 16)),
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
    """The configuration of a registry model, at a scale or at a rung. Imports no torch.

    The name ``8M`` is GF-MH at 8M whatever the scale says. Raises ``UnknownModelError``, ``UnknownScaleError`` or
    ``ConfigError``.
    """
    name, scale = _FIXED_SCALE.get(name, (name, scale))
    if name not in _REGISTRY:
        known = list_models()
        raise UnknownModelError(
            f"no model is called {name!r}.{did_you_mean(name, tuple(known))} Known: {', '.join(known)}"
        )
    if scale not in SCALES and scale not in RUNGS:
        raise UnknownScaleError(
            f"no scale is called {scale!r} (model {name}).{did_you_mean(scale, tuple(SCALES))} "
            f"Known: {', '.join(SCALES)}"
        )
    entry = _REGISTRY[name]
    shape = (_SHAPES if scale in SCALES else _RUNG_SHAPES)[entry.family][scale]
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
    """Of RWKV-6 and of attention: 64, but 32 below 8M, so that there are 4 heads and not 2 at the smallest scale."""
    return 32 if (SCALES | RUNGS)[scale] < SCALES["8M"] else 64


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
