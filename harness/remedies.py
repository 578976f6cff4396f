"""What a training may try when a diagnostic has found that a branch is not used: clipped state gradients, coupling.

    train.state_grad_clip  each row is read in two halves; what of the gradient crosses the cut is clipped
    train.coupling_loss    a penalty on writes of different sizes

Both are off unless they are asked for, and then the update is what it would be without this module. They are part of
``harness.train`` alone: lessons and other trainings with loops of their own know nothing of them. The third remedy
needs nothing here: it is the learning rate of the branch (``train.mamba_lr_mult``, ``train.rwkv_lr_mult``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import TrainConfig
from harness.errors import HarnessError
from models.fusion.base import Fused, Fusion
from models.protocol import SHORT_KINDS, State, StatePath, capabilities

FLOOR = 1e-6
"""Of the sum of two mean squares, added to each: from a thousand to one on, the coupling loss does not grow."""


class RemedyError(HarnessError):
    """The model lacks what a remedy works on. The message says what."""


def asked_for(config: TrainConfig) -> str:
    """The remedies that a configuration switches on, joined by ``and``; empty when there is none."""
    on = {"train.state_grad_clip": config.state_grad_clip is not None, "train.coupling_loss": config.coupling_loss > 0}
    return " and ".join(name for name, is_on in on.items() if is_on)


def write_gap(first: Tensor, second: Tensor) -> Tensor:
    r"""``(ln RMS_1 - ln RMS_2)^2`` of two writes from their mean squares ``[...]``, in squared nats.

    With ``FLOOR`` of their sum added to each, so that a write of exactly zero (a fresh RWKV-6) has a gap and no
    infinite gradient. 0 where both are zero. A factor common to both changes nothing.
    """
    # the smallest number lets two zeros be equal
    floor = FLOOR * (first + second) + torch.finfo(first.dtype).tiny
    return (0.5 * (torch.log(first + floor) - torch.log(second + floor))).square()


def clip_rows(tensor: Tensor, limit: float, seen: Tensor) -> Tensor:
    """``tensor [B, ...]`` as it is; its gradient, row by row, shortened to an L2 norm of at most ``limit``.

    A row whose norm is not larger keeps its bits, and one that is not finite stays so. ``seen [2]`` counts in the
    backward pass: rows that were shortened, and all rows.
    """
    clipped: Tensor = _ClipRows.apply(tensor, limit, seen)  # type: ignore[no-untyped-call]
    return clipped


class _ClipRows(torch.autograd.Function):
    """The identity, with a gradient that is clipped by rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, limit: float, seen: Tensor) -> Tensor:
        ctx.limit, ctx.seen = limit, seen
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        dtype = torch.promote_types(grad.dtype, torch.float32)
        norm_B = torch.linalg.vector_norm(grad.flatten(1), dim=1, dtype=dtype)
        over_B = norm_B > ctx.limit
        ctx.seen += torch.stack((over_B.sum(), torch.ones_like(over_B).sum()))
        scale_B = torch.where(over_B, ctx.limit / norm_B, 1.0).to(grad.dtype)
        return grad * scale_B.view(-1, *[1] * (grad.ndim - 1)), None, None


class Treatment:
    r"""A model under the remedies of ``config``: its logits, and after them what they add to the loss.

    **state_grad_clip** c. A row of T tokens is read as its first T // 2 and then the rest, the state carried. On the
    way back, the gradient of the row's own mean loss with respect to each LONG state tensor at the cut is shortened to
    an L2 norm of at most c, tensor by tensor and row by row; the size of the batch does not matter. That is all it
    clips: what crosses the cut. Inside a half the kernels keep the gradient of the state to themselves, SHORT states
    cross as they are, and weights are clipped by ``clip_norm`` as ever.

    **coupling_loss** lambda. Adds lambda x mean over the layers of ``write_gap`` of what their two branches add to the
    residual stream, over all positions of a micro-batch. A surrogate: the coupling that COUPLING measures is made of
    gradients of the loss, and to train on it would take gradients of those.

    names  what ``report`` gives of an update: ``state_grad_clipped``, the share of those gradients that were
           shortened, and ``coupling_loss``, the term before lambda
    Raises ``RemedyError`` for a model without a state, and for one without layers that fuse two parallel branches by a
    ``models.fusion.base.Fusion``, which is where writes are seen. The activations hold the same tensors, but with them
    come observations that walk position by position.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model, self.limit, self.weight = model, config.state_grad_clip, config.coupling_loss
        self.micro_batches = config.grad_accumulation
        if self.limit is not None and "state" not in capabilities(model):
            raise RemedyError(
                f"train.state_grad_clip {self.limit:g}: {type(model).__name__} takes and returns no state, so no row "
                f"can be read in halves; leave it out"
            )
        self.fusions = [module for module in model.modules() if isinstance(module, Fusion)] if self.weight else []
        if self.weight and not self.fusions:
            raise RemedyError(
                f"train.coupling_loss {self.weight:g}: {type(model).__name__} has no layer with two parallel branches "
                f"that shows their writes (a models.fusion.base.Fusion); leave it out"
            )
        device = next(model.parameters()).device
        self.seen = torch.zeros(2, dtype=torch.int64, device=device)
        self.gaps = torch.zeros((), device=device)
        # by layer: sum of squares of each write, and their entries, over the pieces of a micro-batch
        self.squares: dict[int, tuple[Tensor, Tensor, int]] = {}
        on = {"state_grad_clipped": self.limit is not None, "coupling_loss": self.weight > 0}
        self.names = tuple(name for name, is_on in on.items() if is_on)

    def read(self, tokens_bT: Tensor) -> Tensor:
        """Logits ``[b,T,V]`` of one micro-batch."""
        self.squares = {}
        with self._watched():
            if self.limit is None:
                logits_bTV: Tensor = self.model(tokens_bT)
                return logits_bTV
            cut = tokens_bT.shape[1] // 2
            first_btV, state = self.model(tokens_bT[:, :cut], None, return_states=True)
            carried = self._clipped(state, self.limit / (len(tokens_bT) * self.micro_batches))
            second_btV, _ = self.model(tokens_bT[:, cut:], carried, return_states=True)
            return torch.cat((first_btV, second_btV), 1)

    def add_to(self, loss: Tensor) -> Tensor:
        """The loss of the micro-batch that was read last, already its part of the update's, with what comes on top."""
        if not self.weight:
            return loss
        if not self.squares:
            raise RemedyError(
                f"train.coupling_loss: {type(self.model).__name__} calls none of its fusions; leave it out"
            )
        gaps = [write_gap(first / count, second / count) for first, second, count in self.squares.values()]
        gap = torch.stack(gaps).mean() / self.micro_batches
        self.gaps = self.gaps + gap.detach()
        return loss + self.weight * gap

    def report(self) -> list[Tensor]:
        """The numbers of ``names`` since the last call, on the device, without waiting."""
        found = {"state_grad_clipped": self.seen[0] / self.seen[1], "coupling_loss": self.gaps}
        self.seen, self.gaps = torch.zeros_like(self.seen), torch.zeros_like(self.gaps)
        return [found[name] for name in self.names]

    def _clipped(self, state: State, limit: float) -> State:
        def carry(path: StatePath, tensor: Tensor) -> Tensor:
            is_long = path.kind not in SHORT_KINDS and tensor.is_floating_point()
            return clip_rows(tensor, limit, self.seen) if is_long else tensor

        if not any(tensor.is_floating_point() for _, tensor in state.long_items()):
            raise RemedyError(
                f"train.state_grad_clip: {type(self.model).__name__} has no state that lasts, so nothing would be "
                f"clipped; leave it out"
            )
        return state.map(carry)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Hooks on the fusions for one pass only: a model that keeps hooks is another model to whoever looks at it."""
        handles = [
            fusion.register_forward_hook(lambda _, __, fused, layer=layer: self._add(layer, fused))
            for layer, fusion in enumerate(self.fusions)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: int, fused: Fused) -> None:
        # in bf16 a sum of squares would lose all but its largest terms
        dtype = torch.promote_types(fused.rwkv.dtype, torch.float32)
        first, second = (write.to(dtype).square().sum() for write in (fused.rwkv, fused.mamba))
        count = fused.rwkv.numel()
        if layer in self.squares:
            old_first, old_second, old_count = self.squares[layer]
            first, second, count = old_first + first, old_second + second, old_count + count
        self.squares[layer] = first, second, count
