"""What the state of a model has to look like: shapes, dtypes and bytes, told by its configuration, not by itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks.mixer import StateSpec
from models.config import ModelConfig
from models.protocol import SHORT_KINDS, State, StatePath

Specs = Mapping[StatePath, StateSpec]


@dataclass(frozen=True)
class ShapeReport:
    """How a state compares with what it should be.

    faults         one line for each tensor that is missing, too many, or of another shape or dtype
    low_precision  LONG tensors that do not hold fp32 values, by path; a cache of inputs (attention) is exempt
    bytes_error    bytes of the state minus the bytes of the expected tensors, of all documents
    bytes_per_row  bytes that one document carries
    """

    faults: tuple[str, ...]
    low_precision: tuple[str, ...]
    bytes_error: int
    bytes_per_row: float


def expected_state(model: nn.Module, batch_size: int) -> Specs:
    """The state that a batch must have: from the configuration where the model has one, else from ``init_state``.

    A size that is None is the number of tokens read. The configuration is read here on its own, so that an
    ``init_state`` that is wrong does not vouch for itself. Sizes: RWKV-6 arXiv:2404.05892 section 4.1, Mamba-2
    arXiv:2405.21060 section 7.1.
    """
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig):
        return {
            StatePath(layer, branch, kind): spec
            for layer, branches in enumerate(config.layers)
            for branch in branches
            for kind, spec in _branch_specs(config, branch, batch_size).items()
        }
    initial: State = model.init_state(batch_size)  # type: ignore[operator]
    return {path: _declared(path, tensor) for path, tensor in initial.items()}


def _branch_specs(config: ModelConfig, branch: str, batch_size: int) -> dict[str, StateSpec]:
    if branch == "rwkv" and config.rwkv is not None:
        size = config.rwkv.head_size
        wkv = (batch_size, config.d_model // size, size, size)
        return {"wkv": StateSpec(wkv, torch.float32), "shift_att": StateSpec((batch_size, config.d_model), None)}
    if branch == "mamba" and config.mamba is not None:
        mamba = config.mamba
        d_inner = mamba.expand * config.d_model
        ssm = (batch_size, d_inner // mamba.head_dim, mamba.head_dim, mamba.d_state)
        conv = (batch_size, d_inner + 2 * mamba.num_groups * mamba.d_state, mamba.conv_width - 1)
        return {"ssm": StateSpec(ssm, torch.float32), "conv": StateSpec(conv, None)}
    assert config.attention is not None, "ModelConfig demands the configuration of every branch it names"
    heads = config.attention.num_heads
    cache = StateSpec((batch_size, heads, None, config.d_model // heads), None)
    return {"k": cache, "v": cache}


def _declared(path: StatePath, tensor: Tensor) -> StateSpec:
    """What a model's own first state promises: a size of 0 grows with the text, and only a cache has one."""
    shape = tuple(size or None for size in tensor.shape)
    recurrent = path.kind not in SHORT_KINDS and None not in shape
    return StateSpec(shape, torch.float32 if recurrent else None)


def report_shapes(state: State, specs: Specs, length: int) -> ShapeReport:
    """Compare a state after ``length`` tokens with what it must be.

    A LONG tensor of fp32 whose every entry bfloat16 could hold too was rounded on its way: it counts as low precision.
    """
    found = dict(state.items())
    wanted = {path: StateSpec(_filled(spec, length), spec.dtype) for path, spec in specs.items()}
    faults = [f"{path} is missing" for path in wanted if path not in found]
    faults += [f"{path} is one too many" for path in found if path not in wanted]
    faults += [
        f"{path} is {list(tensor.shape)} {_name(tensor.dtype)}; it must be {wanted[path]}"
        for path, tensor in found.items()
        if path in wanted and not wanted[path].fits(tensor)
    ]
    recurrent = [path for path, spec in specs.items() if spec.dtype is not None and path in found]
    low = tuple(str(path) for path in recurrent if is_low_precision(found[path]))
    expected_bytes = sum(
        math.prod(size or 0 for size in spec.shape) * (spec.dtype or found[path].dtype).itemsize
        for path, spec in wanted.items()
        if path in found
    )
    rows = max((len(tensor) for tensor in found.values()), default=1)
    return ShapeReport(tuple(faults), low, state.nbytes - expected_bytes, state.nbytes / rows)


def _filled(spec: StateSpec, length: int) -> tuple[int | None, ...]:
    return tuple(length if size is None else size for size in spec.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_low_precision(tensor: Tensor) -> bool:
    """Whether a tensor holds less than fp32: by its dtype, or because bfloat16 holds every non-zero entry exactly."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return True
    values = tensor[tensor != 0]
    return bool(len(values)) and torch.equal(values.bfloat16().to(values.dtype), values)


def grows(model: nn.Module, tokens_BT: Tensor) -> frozenset[tuple[str, str]]:
    """``(branch, kind)`` of the tensors that hold one entry a token, such as the keys and values of attention.

    They keep the past as it was: nothing in them is accumulated, decays, or can be of one size for any text.
    """
    with torch.no_grad():
        _, short = model(tokens_BT[:, :1], return_states=True)
        _, longer = model(tokens_BT[:, :2], return_states=True)
    sizes = {path: tensor.shape for path, tensor in longer.items()}
    return frozenset((path.branch, path.kind) for path, tensor in short.items() if tensor.shape != sizes[path])
