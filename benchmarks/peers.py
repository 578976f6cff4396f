"""Programs of others that do the same work, to be timed beside ours: single operations, and whole models.

A peer is given what we are given: the same tensors, states in and out, gradients into both. It is timed as its authors
wrote it, with their defaults where they have some. What it needs is imported when it is loaded, and only then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.fusion.build import build_fusion
from models.registry import RUNGS, SCALES

Inputs = dict[str, Tensor]
Outputs = tuple[Tensor, ...]
Operation = Callable[[Inputs], Outputs]


@dataclass(frozen=True)
class Peer:
    """Another implementation of one of our operations.

    needs   modules that it is made of
    load    imports them; the function takes inputs by our names and gives our outputs
    """

    op: str
    name: str
    needs: tuple[str, ...]
    load: Callable[[], Operation]


@dataclass(frozen=True)
class ModelPeer:
    """Another program's language model, of about the size of a configuration of ours and for that many positions.

    ``build`` gives a module that maps tokens and targets ``[B,T]`` to a loss.
    """

    name: str
    modes: tuple[str, ...]
    needs: tuple[str, ...]
    build: Callable[[ModelConfig, int], nn.Module]


def missing(needs: Sequence[str]) -> list[str]:
    """Those of these modules that are not installed."""
    return [module for module in needs if find_spec(module) is None]


def failures() -> tuple[type[Exception], ...]:
    """How a program of others may fail where ours run: in CUDA, in torch, in Triton, by its version."""
    known = (RuntimeError, ImportError, TypeError, ValueError, AttributeError, AssertionError)
    if find_spec("triton") is None:
        return known
    from triton import TritonError

    return (*known, TritonError)


def _chunk_rwkv6() -> Operation:
    from fla.ops.rwkv6 import chunk_rwkv6

    return lambda inputs: tuple(chunk_rwkv6(**_fla_rwkv6(inputs)))


def _fused_recurrent_rwkv6() -> Operation:
    from fla.ops.rwkv6 import fused_recurrent_rwkv6

    return lambda inputs: tuple(fused_recurrent_rwkv6(**_fla_rwkv6(inputs)))


def _fla_rwkv6(inputs: Inputs) -> dict[str, Tensor | float | bool]:
    r, k, v, w, u, state = (
        inputs[name] for name in ("r_BTHK", "k_BTHK", "v_BTHV", "log_w_BTHK", "u_HK", "initial_state_BHKV")
    )
    # without a scale of 1 it divides by the root of the head size, which RWKV-6 does not
    given = {"r": r, "k": k, "v": v, "w": w, "u": u, "initial_state": state}
    return {**given, "scale": 1.0, "output_final_state": True}


def _mamba_chunk_scan() -> Operation:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def scan(inputs: Inputs) -> Outputs:
        x, dt, A, B, C = (inputs[name] for name in ("x_BTHP", "dt_BTH", "A_H", "B_BTGN", "C_BTGN"))
        # its default of 256 wastes half of a sequence that short
        chunk_size = 64 if x.shape[1] <= 256 else 256
        state = inputs["initial_state_BHPN"]
        return tuple(
            mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, initial_states=state, return_final_states=True)
        )

    return scan


def _causal_conv1d() -> Operation:
    from causal_conv1d import causal_conv1d_fn

    def convolve(inputs: Inputs) -> Outputs:
        x_BCT, state_BCw = inputs["x_BTC"].transpose(1, 2), inputs["initial_state_BCw"]
        # it takes states in the dtype of x, and channels last like x
        state = state_BCw.transpose(1, 2).to(x_BCT.dtype).contiguous().transpose(1, 2)
        y_BCT, final = causal_conv1d_fn(
            x_BCT,
            inputs["weight_Cw"],
            inputs["bias_C"],
            initial_states=state,
            return_final_states=True,
            activation="silu",
        )
        return y_BCT.transpose(1, 2), final

    return convolve


def _torch_cross_entropy() -> Operation:
    return lambda inputs: (F.cross_entropy(inputs["logits_NV"], inputs["targets_N"]),)


def _fla_cross_entropy() -> Operation:
    from fla.modules import FusedCrossEntropyLoss

    loss = FusedCrossEntropyLoss()
    return lambda inputs: (loss(inputs["logits_NV"], inputs["targets_N"]),)


# The first of an operation is the one that ratios are against.
OPERATIONS = (
    Peer("wkv6", "fla chunk_rwkv6", ("fla",), _chunk_rwkv6),
    # its backward pass drops the gradient of the final state, so it does less than is asked
    Peer("wkv6", "fla fused_recurrent_rwkv6", ("fla",), _fused_recurrent_rwkv6),
    Peer("ssd", "mamba_ssm mamba_chunk_scan_combined", ("mamba_ssm",), _mamba_chunk_scan),
    Peer("causal_conv1d", "causal_conv1d causal_conv1d_fn", ("causal_conv1d",), _causal_conv1d),
    Peer("cross_entropy", "torch F.cross_entropy", (), _torch_cross_entropy),
    Peer("cross_entropy", "fla FusedCrossEntropyLoss", ("fla",), _fla_cross_entropy),
)


class FlaHybrid(nn.Module):
    """Our parallel hybrid with the mixers, norms and loss of flash-linear-attention: same widths, depth and ranks."""

    def __init__(self, config: ModelConfig, num_positions: int) -> None:
        super().__init__()
        from fla.layers import Mamba2, RWKV6Attention
        from fla.modules import FusedCrossEntropyLoss, RMSNorm

        assert config.rwkv is not None, "a parallel hybrid has RWKV-6"
        assert config.mamba is not None, "a parallel hybrid has Mamba-2"
        assert config.fusion is not None, "a parallel hybrid has a fusion"
        D, rwkv, mamba = config.d_model, config.rwkv, config.mamba
        self.embedding = nn.Embedding(config.vocab_size, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": RMSNorm(D),
                    "rwkv": RWKV6Attention(
                        hidden_size=D,
                        expand_k=1.0,
                        num_heads=D // rwkv.head_size,
                        proj_low_rank_dim=rwkv.mix_rank,
                        gate_low_rank_dim=rwkv.decay_rank,
                        layer_idx=index,
                    ),
                    "mamba": Mamba2(
                        hidden_size=D,
                        head_dim=mamba.head_dim,
                        state_size=mamba.d_state,
                        expand=mamba.expand,
                        n_groups=mamba.num_groups,
                        conv_kernel=mamba.conv_width,
                        chunk_size=64,  # its default of 256 wastes half of a sequence that short
                        layer_idx=index,
                    ),
                    "fusion": build_fusion(config.fusion, D),
                    "ffn_norm": RMSNorm(D),
                    "up": nn.Linear(D, config.d_ff, bias=False),
                    "down": nn.Linear(config.d_ff, D, bias=False),
                }
            )
            for index in range(config.num_layers)
        )
        self.norm = RMSNorm(D)
        self.loss = FusedCrossEntropyLoss()

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss."""
        x = self.embedding(tokens_BT)
        for layer in self.layers:
            u = layer["norm"](x)
            fused = layer["fusion"](layer["rwkv"](u)[0], layer["mamba"](u)[0])
            x = x + fused.rwkv + fused.mamba
            x = x + layer["down"](F.gelu(layer["up"](layer["ffn_norm"](x))))
        logits = F.linear(self.norm(x), self.embedding.weight)
        loss: Tensor = self.loss(logits.flatten(0, 1), targets_BT.flatten())
        return loss


class HfGpt2(nn.Module):
    """GPT-2 of Hugging Face's transformers, of about as many parameters, with its own loss and without dropout."""

    # parameters it is for, width, layers, heads
    SHAPES = ((3.5e6, 128, 7, 4), (8e6, 256, 6, 4), (30e6, 512, 7, 8), (125e6, 768, 16, 12))

    def __init__(self, config: ModelConfig, num_positions: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        size = (SCALES | RUNGS)[config.scale]
        _, width, layers, heads = min(self.SHAPES, key=lambda shape: abs(shape[0] - size))
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=num_positions,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """The mean loss; it makes the targets from the tokens itself."""
        loss: Tensor = self.model(input_ids=tokens_BT, labels=tokens_BT).loss
        return loss


MODELS = (
    ModelPeer("fla hybrid", ("eager", "compiled", "graphed"), ("fla", "mamba_ssm", "causal_conv1d"), FlaHybrid),
    ModelPeer("transformers GPT2LMHeadModel", ("eager", "compiled"), ("transformers",), HfGpt2),
)
