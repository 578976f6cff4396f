"""RWKV-6 as published (x060): LayerNorm, ln0, time-mix, channel-mix, untied head. arXiv:2404.05892."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.blocks.mixer import StateSpec
from models.blocks.parameters import undecayed_norm
from models.blocks.rwkv6 import MIXED, Rwkv6ChannelMix, Rwkv6TimeMix
from models.config import Rwkv6Config
from models.protocol import LayerState
from models.published.official import (
    Name,
    Source,
    count_layers,
    flat,
    load_named,
    norm_pair,
    read_tensors,
    require,
    same,
)
from models.stack import Layer, LayerOutput, LayerSpec, StackedModel

EMBEDDING_BOUND = 1e-4
HEAD_GAIN = 0.5
LINEARS = ("receptance", "key", "value", "gate", "output")


def channel_mix_width(d_model: int) -> int:
    """The authors' width of the channel-mix: 3.5 times the model's, rounded down to a multiple of 32."""
    return int(3.5 * d_model) // 32 * 32


class Rwkv6Layer(Layer):
    """LayerNorm, time-mix, residual; LayerNorm, channel-mix, residual. Adds the state kind ``shift_ffn``."""

    def __init__(self, d_model: int, d_ff: int, config: Rwkv6Config, layer_index: int, num_layers: int) -> None:
        time_mix = Rwkv6TimeMix(d_model, config, layer_index, num_layers)
        super().__init__(undecayed_norm(nn.LayerNorm(d_model)), {"rwkv": time_mix})
        self.channel_norm = undecayed_norm(nn.LayerNorm(d_model))
        self.channel_mix = Rwkv6ChannelMix(d_model, d_ff, layer_index, num_layers)

    def forward(
        self,
        x_BTD: Tensor,
        state: LayerState | None,
        observe: bool,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> LayerOutput:
        """One layer; ``observe`` adds the activations of the time-mix."""
        mixed = super().forward(x_BTD, state, observe, lengths_B, keep_state)
        previous_BD = None if state is None else state["rwkv"]["shift_ffn"]
        y_BTD, shift_BD = self.channel_mix(self.channel_norm(mixed.x), previous_BD, lengths_B)
        final = {"rwkv": {**mixed.state["rwkv"], "shift_ffn": shift_BD}}
        return LayerOutput(mixed.x + y_BTD, final, activations=mixed.activations)

    def state_spec(self, batch_size: int) -> LayerSpec:
        """The time-mix's state and ``shift_ffn``."""
        spec = super().state_spec(batch_size)
        spec["rwkv"]["shift_ffn"] = StateSpec((batch_size, self.channel_mix.maa_k.numel()), None)
        return spec


class PublishedRwkv6(StackedModel):
    """The published network; ``d_ff`` None means the authors' width."""

    def __init__(
        self, vocab_size: int, d_model: int, num_layers: int, rwkv: Rwkv6Config, d_ff: int | None = None
    ) -> None:
        width = channel_mix_width(d_model) if d_ff is None else d_ff
        embedding = nn.Embedding(vocab_size, d_model)
        nn.init.uniform_(embedding.weight, -EMBEDDING_BOUND, EMBEDDING_BOUND)
        super().__init__(
            embedding,
            [Rwkv6Layer(d_model, width, rwkv, index, num_layers) for index in range(num_layers)],
            undecayed_norm(nn.LayerNorm(d_model)),
            tied=False,
            input_norm=undecayed_norm(nn.LayerNorm(d_model)),
        )
        assert self.head is not None, "an untied stack has a head"
        nn.init.orthogonal_(self.head.weight, gain=HEAD_GAIN * max(vocab_size / d_model, 1) ** 0.5)

    @classmethod
    def load_official(cls, source: Source) -> "PublishedRwkv6":
        """A model with the official tensors of ``source``; all sizes are read from them.

        Raises ``OfficialFormatError`` when names or shapes do not fit.
        """
        tensors = read_tensors(source)
        first = "blocks.0."
        sized = ("att.time_faaaa", "att.time_maa_w1", "att.time_decay_w1", "ffn.key.weight")
        require(tensors, ["emb.weight", *(first + name for name in sized)])
        bonus_HK, mix_DR, decay_DR, key_FD = (tensors[first + name] for name in sized)
        vocab_size, d_model = tensors["emb.weight"].shape
        config = Rwkv6Config(bonus_HK.shape[1], mix_DR.shape[1] // len(MIXED), decay_DR.shape[1])
        num_layers = count_layers(tensors, "blocks.")
        model = cls(vocab_size, d_model, num_layers, config, key_FD.shape[0])
        load_named(model, tensors, _names(num_layers))
        return model


def _names(num_layers: int) -> Iterator[Name]:
    yield same("embedding.weight", "emb.weight")
    yield same("head.weight", "head.weight")
    yield from norm_pair("input_norm", "blocks.0.ln0")
    yield from norm_pair("final_norm", "ln_out")
    for index in range(num_layers):
        ours, official = f"layers.{index}.", f"blocks.{index}."
        yield from norm_pair(ours + "norm", official + "ln1")
        yield from norm_pair(ours + "channel_norm", official + "ln2")
        yield from _time_mix(ours + "mixers.rwkv.", official + "att.")
        for letter in "kr":
            yield flat(f"{ours}channel_mix.maa_{letter}", f"{official}ffn.time_maa_{letter}")
        for linear in ("key", "receptance", "value"):
            yield same(f"{ours}channel_mix.{linear}.weight", f"{official}ffn.{linear}.weight")


def _time_mix(ours: str, official: str) -> Iterator[Name]:
    yield flat(ours + "maa_x", official + "time_maa_x")
    five = tuple(f"{official}time_maa_{letter}" for letter in MIXED)
    yield Name(ours + "maa", five, lambda *mixes: torch.stack([mix.flatten() for mix in mixes]))
    yield same(ours + "maa_w1", official + "time_maa_w1")
    yield same(ours + "maa_w2", official + "time_maa_w2")
    yield flat(ours + "time_decay", official + "time_decay")
    yield same(ours + "decay_w1", official + "time_decay_w1")
    yield same(ours + "decay_w2", official + "time_decay_w2")
    yield same(ours + "bonus", official + "time_faaaa")
    for linear in LINEARS:
        yield same(f"{ours}{linear}.weight", f"{official}{linear}.weight")
    yield same(ours + "norm_weight", official + "ln_x.weight")
    yield same(ours + "norm_bias", official + "ln_x.bias")
