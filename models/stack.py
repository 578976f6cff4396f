"""The stack: embedding, layers, final norm, head; the state in and out; the observations.

Every model of this package is this stack around different layers, so the contract of ``models/protocol.py`` is met in
one place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.mixer import Mixer, MixerOutput, StateSpec
from models.fusion.base import Fused, Fusion
from models.protocol import Activations, LayerActivations, LayerState, State, StateError, StatePath
from models.segments import Documents, join_ends, join_positions, split_documents

LayerSpec = dict[str, dict[str, StateSpec]]


class ContextError(ValueError):
    """More positions than the model has. The message says how many it has."""


@dataclass(frozen=True)
class LayerOutput:
    """What a layer returns: the residual stream, its state, and the mixing gate and observations it made, if any."""

    x: Tensor
    state: dict[str, dict[str, Tensor]]
    gate: Tensor | None = None
    activations: LayerActivations | None = None


class Layer(nn.Module):
    r"""Norm, one branch or two in parallel, fusion, residual; then norm, feed-forward, residual.

    x <- x + fuse(mixer_1(norm(x)), mixer_2(norm(x)))
    x <- x + ffn(norm(x))                                 where there is a feed-forward
    """

    def __init__(
        self,
        norm: nn.Module,
        mixers: Mapping[str, Mixer],
        fusion: Fusion | None = None,
        ffn_norm: nn.Module | None = None,
        ffn: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert (len(mixers) == 2) == (fusion is not None), "two branches need a fusion, one branch has none"
        assert (ffn_norm is None) == (ffn is None), "a feed-forward comes with its norm"
        self.norm = norm
        self.mixers = nn.ModuleDict(mixers)
        self.fusion = fusion
        self.ffn_norm = ffn_norm
        self.ffn = ffn

    def forward(
        self,
        x_BTD: Tensor,
        state: LayerState | None,
        observe: bool,
        lengths_B: Tensor | None = None,
        keep_state: bool = True,
    ) -> LayerOutput:
        """One layer; ``observe`` adds the activations and changes nothing else; the rest: see ``Mixer``."""
        u_BTD = self.norm(x_BTD)
        outputs: dict[str, MixerOutput] = {
            branch: mixer(
                u_BTD, None if state is None else state[branch], observe, lengths_B=lengths_B, keep_state=keep_state
            )
            for branch, mixer in self.mixers.items()
        }
        if self.fusion is None:
            [(branch, output)] = outputs.items()
            fused, writes = None, {branch: output.y}
            x_BTD = x_BTD + output.y
        else:
            fused = self.fusion(outputs["rwkv"].y, outputs["mamba"].y)
            writes = {"rwkv": fused.rwkv, "mamba": fused.mamba}
            x_BTD = x_BTD + (fused.rwkv + fused.mamba)
        if self.ffn is not None and self.ffn_norm is not None:
            x_BTD = x_BTD + self.ffn(self.ffn_norm(x_BTD))
        return LayerOutput(
            x_BTD,
            {branch: output.state for branch, output in outputs.items()},
            None if fused is None else fused.gate,
            _observations(outputs, writes, fused) if observe else None,
        )

    def state_spec(self, batch_size: int) -> LayerSpec:
        """What the state of this layer must look like."""
        return {
            branch: mixer.state_spec(batch_size) for branch, mixer in self.mixers.items() if isinstance(mixer, Mixer)
        }


def _observations(
    outputs: Mapping[str, MixerOutput], writes: Mapping[str, Tensor], fused: Fused | None
) -> LayerActivations:
    return LayerActivations(
        writes=writes,
        decays={branch: output.decay for branch, output in outputs.items() if output.decay is not None},
        innovations={branch: output.innovation for branch, output in outputs.items() if output.innovation is not None},
        gate=None if fused is None else fused.gate,
        gate_logits=None if fused is None else fused.gate_logits,
    )


class StackedModel(nn.Module):
    """A language model that meets the contract of ``models/protocol.py``.

    num_positions gives it learned absolute positions; tied shares the embedding with the head; input_norm is
    applied to the embedding (the ln0 of RWKV).
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        layers: Sequence[Layer],
        final_norm: nn.Module,
        num_positions: int | None = None,
        tied: bool = True,
        input_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        vocab_size, d_model = embedding.num_embeddings, embedding.embedding_dim
        self.embedding = embedding
        self.positions = None if num_positions is None else nn.Embedding(num_positions, d_model)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        self.input_norm = input_norm
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm
        self.head = None if tied else nn.Linear(d_model, vocab_size, bias=False)

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        return_states: bool = False,
        return_activations: bool = False,
        segments: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State] | tuple[Tensor, Activations] | tuple[Tensor, State, Activations]:
        """Logits ``[B,T,V]`` of the next token, and on request the final state and the activations.

        ``segments`` ``[B,T]``: 0 for padding, else the document of a position (``models/protocol.py``).
        Raises ``StateError`` when the state does not fit, ``ContextError`` when learned positions run out and
        ``ValueError`` for malformed tokens or segments.
        """
        if tokens_BT.dim() != 2 or tokens_BT.shape[1] == 0:
            raise ValueError(f"tokens have shape {list(tokens_BT.shape)}; they must be [batch, positions >= 1]")
        if state is not None:
            self._check_state(state, tokens_BT.shape[0])
        if segments is None:
            outputs = self._run(tokens_BT, state, return_activations, return_states)
        else:
            outputs = self._run_documents(tokens_BT, state, return_activations, segments, return_states)
        logits_BTV = self._logits(outputs[-1].x)
        if not (return_states or return_activations):
            return logits_BTV
        activations = Activations(tuple(o.activations for o in outputs if o.activations is not None))
        if not return_states:
            return logits_BTV, activations
        gates = [output.gate.detach() for output in outputs if output.gate is not None]
        final = State.of([output.state for output in outputs], gates)
        return (logits_BTV, final, activations) if return_activations else (logits_BTV, final)

    def capturable_forward(self, compiler: str = "inductor") -> Callable[[Tensor], Tensor]:
        """The pass from tokens to logits as a CUDA graph can hold it: no host waits in it, and its layers are fused.

        It is for the model where it is now: move it first. ``compiler`` is a backend of torch.compile.
        """
        from models.fused import FusedLayers

        layers = FusedLayers(list(self.layers), compiler)
        return lambda tokens_BT: self._logits(layers(self._embed(tokens_BT, None)))

    def _logits(self, x_BTD: Tensor) -> Tensor:
        return F.linear(self.final_norm(x_BTD), self.embedding.weight if self.head is None else self.head.weight)

    def _run(
        self,
        tokens_BT: Tensor,
        state: State | None,
        observe: bool,
        keep_states: bool,
        lengths_B: Tensor | None = None,
    ) -> list[LayerOutput]:
        """What the layers return, first to last."""
        x_BTD = self._embed(tokens_BT, state)
        outputs: list[LayerOutput] = []
        for index, layer in enumerate(self.layers):
            past = None if state is None else state.layers[index]
            output = layer(x_BTD, past, observe, lengths_B=lengths_B, keep_state=keep_states)
            x_BTD = output.x
            outputs.append(output)
        return outputs

    def _run_documents(
        self, tokens_BT: Tensor, state: State | None, observe: bool, segments_BT: Tensor, keep_states: bool
    ) -> list[LayerOutput]:
        """The same for padded or packed rows: every document is read as a row of its own, then put back."""
        shape = tokens_BT.shape
        pieces = split_documents(segments_BT, shape, carries=state is not None)
        runs = [
            self._run(piece.take(tokens_BT), state if piece.carries else None, observe, keep_states, piece.lengths)
            for piece in pieces
        ]
        joined: list[LayerOutput] = []
        for index, (layer, *parts) in enumerate(zip(self._layers(), *runs, strict=True)):
            place = partial(join_positions, pieces, shape=shape)
            gates = [part.gate for part in parts if part.gate is not None]
            observed = [part.activations for part in parts if part.activations is not None]
            past = None if state is None else state.layers[index]
            final = _end_states(index, layer.state_spec(shape[0]), past, pieces, parts) if keep_states else {}
            joined.append(
                LayerOutput(
                    place([part.x for part in parts]),
                    final,
                    place(gates) if gates else None,
                    LayerActivations.merge(observed, place) if observed else None,
                )
            )
        return joined

    def _embed(self, tokens_BT: Tensor, state: State | None) -> Tensor:
        x_BTD: Tensor = self.embedding(tokens_BT)
        if self.positions is not None:
            begin = 0 if state is None else state.layers[0]["attention"]["k"].shape[2]
            end = begin + tokens_BT.shape[1]
            if end > self.positions.num_embeddings:
                raise ContextError(
                    f"tokens reach position {end}, but this model has {self.positions.num_embeddings} learned "
                    f"positions ({begin} already in its state); give shorter input or a model without positions"
                )
            x_BTD = x_BTD + self.positions.weight[begin:end]
        return x_BTD if self.input_norm is None else self.input_norm(x_BTD)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, each once, in order of first appearance."""
        return tuple(dict.fromkeys(branch for layer in self._layers() for branch in layer.mixers))

    def branch_modules(self) -> dict[str, list[nn.Module]]:
        """The mixers of each branch, in layer order."""
        return {
            branch: [layer.mixers[branch] for layer in self._layers() if branch in layer.mixers]
            for branch in self.branches
        }

    def init_state(self, batch_size: int) -> State:
        """The state before the first token: zeros, on the model's device."""
        weight = self.embedding.weight
        return State.of(
            [
                {
                    branch: {kind: spec.zeros(weight.device, weight.dtype) for kind, spec in kinds.items()}
                    for branch, kinds in layer.state_spec(batch_size).items()
                }
                for layer in self._layers()
            ]
        )

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _check_state(self, state: State, batch_size: int) -> None:
        if len(state.layers) != len(self.layers):
            raise StateError(f"the state has {len(state.layers)} layers, the model {len(self.layers)}")
        for index, (layer, given) in enumerate(zip(self._layers(), state.layers, strict=True)):
            want = layer.state_spec(batch_size)
            for branch in {**want, **given}:
                kinds = {**want.get(branch, {}), **given.get(branch, {})}
                for kind in kinds:
                    _check_tensor(
                        StatePath(index, branch, kind),
                        want.get(branch, {}).get(kind),
                        given.get(branch, {}).get(kind),
                    )


def _check_tensor(path: StatePath, spec: StateSpec | None, tensor: Tensor | None) -> None:
    if spec is None:
        raise StateError(f"the state has {path}, which this model does not; start from model.init_state(batch_size)")
    if tensor is None:
        raise StateError(f"the state lacks {path}; start from model.init_state(batch_size)")
    if not spec.fits(tensor):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise StateError(f"{path} is {list(tensor.shape)} {dtype}; it must be {spec}")


def _end_states(
    index: int, spec: LayerSpec, past: LayerState | None, pieces: Sequence[Documents], parts: Sequence[LayerOutput]
) -> dict[str, dict[str, Tensor]]:
    """State of one layer after the last document of each row; ``past`` is what came in."""
    ending = [(piece, part) for piece, part in zip(pieces, parts, strict=True) if len(piece.ended)]
    final: dict[str, dict[str, Tensor]] = {branch: {} for branch in spec}
    for branch, kinds in spec.items():
        for kind, tensor_spec in kinds.items():
            tensors = [part.state[branch][kind] for _, part in ending]
            dim = tensor_spec.growing_dim
            if dim is not None:
                before = 0 if past is None else past[branch][kind].shape[dim]
                lengths = {n + before * piece.carries for piece, _ in ending for n in piece.end_lengths()}
                if len(lengths) > 1:
                    raise StateError(
                        f"{StatePath(index, branch, kind)} would hold {min(lengths)} to {max(lengths)} positions, but "
                        "one state holds the same number for every row; give rows whose last documents are equally "
                        "long, or ask for no state"
                    )
                tensors = [tensor.narrow(dim, 0, *lengths) for tensor in tensors]
            final[branch][kind] = join_ends([piece for piece, _ in ending], tensors)
    return final
