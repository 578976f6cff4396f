"""Mamba-2 as published: RMSNorm and mixer, nothing between them. arXiv:2405.21060."""

from collections.abc import Iterator

from torch import nn

from models.blocks.mamba2 import NORM_EPS, Mamba2Mixer
from models.blocks.norm import RMSNorm
from models.config import Mamba2Config
from models.published.official import Name, Source, count_layers, load_named, read_tensors, require, same
from models.stack import Layer, StackedModel

# The two public programs differ in this one name.
EMBEDDING_NAMES = {"backbone.embedding.weight": "backbone.embeddings.weight"}
EMBEDDING, HEAD = "backbone.embeddings.weight", "lm_head.weight"


class PublishedMamba2(StackedModel):
    """The published network; a tied head is the authors' default."""

    def __init__(self, vocab_size: int, d_model: int, num_layers: int, mamba: Mamba2Config, tied: bool = True) -> None:
        embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(embedding.weight, std=0.02)
        super().__init__(
            embedding,
            [
                Layer(RMSNorm(d_model, NORM_EPS), {"mamba": Mamba2Mixer(d_model, mamba, num_residuals=num_layers)})
                for _ in range(num_layers)
            ],
            RMSNorm(d_model, NORM_EPS),
            tied=tied,
        )

    @classmethod
    def load_official(cls, source: Source, num_groups: int = 1) -> "PublishedMamba2":
        """A model with the official tensors of ``source``, from mamba-ssm or Hugging Face.

        All sizes are read from the tensors but ``num_groups``, which they do not tell. The head is tied when it is
        absent or equal to the embedding. Raises ``OfficialFormatError`` when names or shapes do not fit.
        """
        tensors = {EMBEDDING_NAMES.get(name, name): tensor for name, tensor in read_tensors(source).items()}
        first = "backbone.layers.0.mixer."
        sized = ("conv1d.weight", "out_proj.weight", "dt_bias")
        require(tensors, [EMBEDDING, *(first + name for name in sized)])
        conv_C1w, out_DI, dt_bias_H = (tensors[first + name] for name in sized)
        vocab_size, d_model = tensors[EMBEDDING].shape
        d_inner = out_DI.shape[1]
        config = Mamba2Config(
            d_state=(conv_C1w.shape[0] - d_inner) // (2 * num_groups),
            head_dim=d_inner // dt_bias_H.shape[0],
            expand=d_inner // d_model,
            conv_width=conv_C1w.shape[2],
            num_groups=num_groups,
        )
        tied = HEAD not in tensors or tensors[HEAD].equal(tensors[EMBEDDING])
        if tied:
            tensors.pop(HEAD, None)
        num_layers = count_layers(tensors, "backbone.layers.")
        model = cls(vocab_size, d_model, num_layers, config, tied)
        load_named(model, tensors, _names(num_layers, tied))
        return model


def _names(num_layers: int, tied: bool) -> Iterator[Name]:
    yield same("embedding.weight", EMBEDDING)
    if not tied:
        yield same("head.weight", HEAD)
    yield same("final_norm.weight", "backbone.norm_f.weight")
    for index in range(num_layers):
        ours, official = f"layers.{index}.mixers.mamba.", f"backbone.layers.{index}.mixer."
        yield same(f"layers.{index}.norm.weight", f"backbone.layers.{index}.norm.weight")
        yield Name(ours + "conv_weight", (official + "conv1d.weight",), lambda conv_C1w: conv_C1w.squeeze(1))
        yield same(ours + "conv_bias", official + "conv1d.bias")
        yield same(ours + "norm_weight", official + "norm.weight")
        for part in ("in_proj.weight", "out_proj.weight", "dt_bias", "A_log", "D"):
            yield same(ours + part, official + part)
