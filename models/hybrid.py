"""The comparison form: every registry model is this stack, and only the branches, their fusion and the sizes differ.

Pure baselines are the same block with one branch, so that a comparison compares mixers and not blocks.
"""

from torch import nn

from models.blocks.attention import CausalAttention
from models.blocks.ffn import FeedForward
from models.blocks.mamba2 import Mamba2Mixer
from models.blocks.mixer import Mixer
from models.blocks.norm import RMSNorm
from models.blocks.rwkv6 import Rwkv6TimeMix
from models.config import ModelConfig
from models.fusion.build import build_fusion
from models.stack import Layer, StackedModel

NORM_EPS = 1e-5


class HybridModel(StackedModel):
    """RMSNorm, branches and fusion, residual; RMSNorm, GELU feed-forward, residual; tied embedding; no biases there.

    ``config`` is the configuration it was built from. Where its ``d_ff`` is 0 there is no feed-forward.
    """

    def __init__(self, config: ModelConfig) -> None:
        embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(embedding.weight, std=0.02)
        super().__init__(
            embedding,
            [_layer(config, index) for index in range(config.num_layers)],
            RMSNorm(config.d_model, NORM_EPS),
            num_positions=None if config.attention is None else config.attention.num_positions,
        )
        self.config = config


def _layer(config: ModelConfig, index: int) -> Layer:
    branches = config.layers[index]
    parallel = len(branches) == 2
    return Layer(
        RMSNorm(config.d_model, NORM_EPS),
        {branch: _mixer(config, branch, index) for branch in branches},
        build_fusion(config.fusion, config.d_model) if parallel and config.fusion is not None else None,
        RMSNorm(config.d_model, NORM_EPS) if config.d_ff else None,
        FeedForward(config.d_model, config.d_ff, config.num_layers, bias=False) if config.d_ff else None,
    )


def _mixer(config: ModelConfig, branch: str, index: int) -> Mixer:
    if branch == "rwkv" and config.rwkv is not None:
        return Rwkv6TimeMix(config.d_model, config.rwkv, index, config.num_layers)
    if branch == "mamba" and config.mamba is not None:
        return Mamba2Mixer(config.d_model, config.mamba, num_residuals=(2 if config.d_ff else 1) * config.num_layers)
    assert config.attention is not None, "ModelConfig demands the configuration of every branch it names"
    return CausalAttention(config.d_model, config.attention.num_heads, config.num_layers, bias=False)
