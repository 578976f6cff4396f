"""Model configurations: frozen, torch-free, and refusing every key they do not know.

A configuration fixes a network completely. ``to_dict`` and ``from_dict`` are inverse, so that the dictionary can
be stored beside a checkpoint and hashed into its address.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

BRANCHES = ("rwkv", "mamba", "attention")
FUSIONS = (
    "learned_gains",
    "learned_scalar",
    "residual_projection",
    "concat_projection",
    "position_gate",
    "channel_gate",
)
GATED_FUSIONS = ("position_gate", "channel_gate")
RWKV_HEAD_SIZES = (32, 64)


C = TypeVar("C", bound="_Config")


class ConfigError(ValueError):
    """A configuration is not one that can be built. The message says which key, and what was allowed."""


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """`` Did you mean X?`` for the nearest known word, case ignored, or nothing at all."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[near[0]]}?" if near else ""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


class _Config:
    """What all configurations share: conversion to and from plain dictionaries."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers: what JSON can hold."""
        values: dict[str, Any] = _plain(self)
        return values

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The inverse of ``to_dict``. Raises ``ConfigError`` on unknown or missing keys."""
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in values:
            _require(
                key in fields,
                f"{cls.__name__} has no key {key!r}; it has {', '.join(fields)}.{did_you_mean(key, tuple(fields))}",
            )
        missing = [name for name in fields if name not in values and fields[name].default is dataclasses.MISSING]
        _require(not missing, f"{cls.__name__} lacks {', '.join(missing)}")
        return cls(**{key: _PARSERS.get(key, _same)(value) for key, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, _Config):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}  # type: ignore[arg-type]
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Rwkv6Config(_Config):
    """RWKV-6 time-mix (x060). The ranks are those of its two low-rank adapters: token mixing and decay."""

    head_size: int
    mix_rank: int
    decay_rank: int

    def __post_init__(self) -> None:
        _require(
            self.head_size in RWKV_HEAD_SIZES, f"rwkv.head_size is {self.head_size}; the kernels have {RWKV_HEAD_SIZES}"
        )
        _require(
            min(self.mix_rank, self.decay_rank) > 0,
            f"rwkv ranks are ({self.mix_rank}, {self.decay_rank}); both must be at least 1",
        )


@dataclass(frozen=True)
class Mamba2Config(_Config):
    """Mamba-2 mixer."""

    d_state: int = 64
    head_dim: int = 64
    expand: int = 2
    conv_width: int = 4
    num_groups: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(value > 0, f"mamba.{field.name} is {value}; it must be at least 1")
        # the convolution state holds width - 1 inputs, so width 1 would have none
        _require(self.conv_width > 1, f"mamba.conv_width is {self.conv_width}; it must be at least 2")


@dataclass(frozen=True)
class AttentionConfig(_Config):
    """Causal multi-head attention with learned positions."""

    num_heads: int
    num_positions: int

    def __post_init__(self) -> None:
        _require(
            min(self.num_heads, self.num_positions) > 0,
            f"attention has {self.num_heads} heads and {self.num_positions} positions; both must be at least 1",
        )


@dataclass(frozen=True)
class FusionConfig(_Config):
    """How two parallel branches become one write. ``gate_init`` is the share of RWKV-6 at initialisation."""

    kind: str
    gate_init: float | None = None

    def __post_init__(self) -> None:
        _require(
            self.kind in FUSIONS,
            f"fusion.kind is {self.kind!r}; it must be one of {', '.join(FUSIONS)}.{did_you_mean(self.kind, FUSIONS)}",
        )
        if self.kind in GATED_FUSIONS:
            _require(
                self.gate_init is not None and 0 < self.gate_init < 1,
                f"fusion.gate_init is {self.gate_init}; a {self.kind} needs a share strictly between 0 and 1",
            )
        else:
            _require(self.gate_init is None, f"fusion.gate_init is {self.gate_init}, but a {self.kind} has no gate")


@dataclass(frozen=True)
class ModelConfig(_Config):
    """A network in the comparison form (``models/hybrid.py``).

    layers holds the branches of each layer: ``("rwkv", "mamba")`` in parallel, or one branch alone.
    d_ff is the width of the feed-forward of each layer; 0 for layers without one, as recall tasks have them.
    """

    name: str
    scale: str
    vocab_size: int
    d_model: int
    d_ff: int
    layers: tuple[tuple[str, ...], ...]
    rwkv: Rwkv6Config | None = None
    mamba: Mamba2Config | None = None
    attention: AttentionConfig | None = None
    fusion: FusionConfig | None = None

    def __post_init__(self) -> None:
        for key in ("vocab_size", "d_model"):
            _require(getattr(self, key) > 0, f"{key} is {getattr(self, key)}; it must be at least 1")
        _require(self.d_ff >= 0, f"d_ff is {self.d_ff}; it must be at least 1, or 0 for no feed-forward")
        _require(bool(self.layers), "layers is empty; a model needs at least one layer")
        for index, layer in enumerate(self.layers):
            alone = len(layer) == 1 and layer[0] in BRANCHES
            _require(
                alone or layer == ("rwkv", "mamba"),
                f"layers[{index}] is {layer}; allowed are ('rwkv', 'mamba') in parallel or one of {BRANCHES} alone",
            )
        for branch in BRANCHES:
            used = any(branch in layer for layer in self.layers)
            _require(
                used == (getattr(self, branch) is not None),
                f"layers {'use' if used else 'do not use'} the {branch} branch, so {branch} must "
                f"{'not ' if not used else ''}be configured",
            )
        parallel = any(len(layer) == 2 for layer in self.layers)
        _require(
            parallel == (self.fusion is not None),
            f"fusion must {'' if parallel else 'not '}be configured: there are "
            f"{'' if parallel else 'no '}parallel layers",
        )
        self._check_divisions()

    def _check_divisions(self) -> None:
        if self.rwkv is not None:
            _require(
                self.d_model % self.rwkv.head_size == 0,
                f"d_model {self.d_model} is not a multiple of rwkv.head_size {self.rwkv.head_size}",
            )
        if self.mamba is not None:
            d_inner = self.mamba.expand * self.d_model
            _require(
                d_inner % (self.mamba.head_dim * self.mamba.num_groups) == 0,
                f"mamba: expand * d_model = {d_inner} is not a multiple of head_dim {self.mamba.head_dim} "
                f"times num_groups {self.mamba.num_groups}",
            )
        if self.attention is not None:
            _require(
                self.d_model % self.attention.num_heads == 0,
                f"d_model {self.d_model} is not a multiple of attention.num_heads {self.attention.num_heads}",
            )

    @property
    def num_layers(self) -> int:
        """Layers of the network."""
        return len(self.layers)


def _optional(cls: type[_Config]) -> Any:
    return lambda value: cls.from_dict(value) if isinstance(value, Mapping) else value


_PARSERS: dict[str, Any] = {
    "layers": lambda value: tuple(tuple(layer) for layer in value),
    "rwkv": _optional(Rwkv6Config),
    "mamba": _optional(Mamba2Config),
    "attention": _optional(AttentionConfig),
    "fusion": _optional(FusionConfig),
}
