"""GPT-2 as published: LayerNorm, biases, tanh GELU, tied head. Radford et al. 2019, section 2.3."""

import re
from collections.abc import Iterator

from torch import nn

from models.blocks.attention import CausalAttention
from models.blocks.ffn import FeedForward
from models.blocks.parameters import undecayed_norm
from models.published.official import (
    Name,
    Source,
    count_layers,
    load_named,
    norm_pair,
    read_tensors,
    require,
    same,
    transposed,
)
from models.stack import Layer, StackedModel

HEAD_DIM = 64
# Causal masks that some files carry beside the weights.
NOT_WEIGHTS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")


class PublishedGpt2(StackedModel):
    """The published network."""

    def __init__(self, vocab_size: int, d_model: int, num_layers: int, num_heads: int, num_positions: int) -> None:
        embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(embedding.weight, std=0.02)
        super().__init__(
            embedding,
            [
                Layer(
                    undecayed_norm(nn.LayerNorm(d_model)),
                    {"attention": CausalAttention(d_model, num_heads, num_layers, bias=True)},
                    ffn_norm=undecayed_norm(nn.LayerNorm(d_model)),
                    ffn=FeedForward(d_model, 4 * d_model, num_layers, bias=True, gelu="tanh"),
                )
                for _ in range(num_layers)
            ],
            undecayed_norm(nn.LayerNorm(d_model)),
            num_positions=num_positions,
        )

    @classmethod
    def load_official(cls, source: Source, num_heads: int | None = None) -> "PublishedGpt2":
        """A model with the official tensors of ``source``, with or without the prefix ``transformer.``.

        All sizes are read from the tensors but the number of heads; None means heads of 64, as in every official
        size. Raises ``OfficialFormatError`` when names or shapes do not fit.
        """
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in read_tensors(source).items()}
        tensors = {name: tensor for name, tensor in tensors.items() if not NOT_WEIGHTS.match(name)}
        require(tensors, ["wte.weight", "wpe.weight"])
        if "lm_head.weight" in tensors and tensors["lm_head.weight"].equal(tensors["wte.weight"]):
            del tensors["lm_head.weight"]  # an untied one stays, and is refused as unknown
        vocab_size, d_model = tensors["wte.weight"].shape
        num_layers = count_layers(tensors, "h.")
        heads = d_model // HEAD_DIM if num_heads is None else num_heads
        model = cls(vocab_size, d_model, num_layers, heads, tensors["wpe.weight"].shape[0])
        load_named(model, tensors, _names(num_layers))
        return model


def _names(num_layers: int) -> Iterator[Name]:
    yield same("embedding.weight", "wte.weight")
    yield same("positions.weight", "wpe.weight")
    yield from norm_pair("final_norm", "ln_f")
    for index in range(num_layers):
        ours, official = f"layers.{index}.", f"h.{index}."
        yield from norm_pair(ours + "norm", official + "ln_1")
        yield from norm_pair(ours + "ffn_norm", official + "ln_2")
        yield from _linear(ours + "mixers.attention.qkv", official + "attn.c_attn")
        yield from _linear(ours + "mixers.attention.output", official + "attn.c_proj")
        yield from _linear(ours + "ffn.up", official + "mlp.c_fc")
        yield from _linear(ours + "ffn.down", official + "mlp.c_proj")


def _linear(ours: str, official: str) -> Iterator[Name]:
    yield transposed(ours + ".weight", official + ".weight")
    yield same(ours + ".bias", official + ".bias")
