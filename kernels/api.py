"""The public operations: check the inputs, fix the dtypes, call the chosen backend.

Dtypes    computed in fp32, or in fp64 when any input is fp64; ``y`` comes back in the dtype of the values that went in
          (``v``, ``x`` or ``u``); states and losses are always in the compute dtype. Where all values of a call share
          one dtype that the backend takes as it is (``Backend.native``), they are not cast to fp32 first; decays,
          steps, parameters and states always are.
States    ``None`` means zeros. Gradients flow to every input and from and to both states.
NaN       and inf reach the positions from theirs on, and no others. Backends for GPUs that work on chunks may spread
          them to earlier positions of the same chunk, as 0 times NaN is NaN; never further, nor to other rows or heads.
Errors    ``KernelInputError`` (a ``ValueError``) when shapes, dtypes, devices or, on the CPU, signs do not fit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from kernels import backends
from kernels.packages.mamba2 import mamba2_mamba_ssm
from kernels.packages.ssd import fills_chunks
from kernels.shapes import KernelInputError, bind

__all__ = [
    "KernelInputError",
    "causal_conv1d",
    "cross_entropy",
    "fuses_mamba2",
    "gated_rms_norm",
    "mamba2",
    "rms_norm",
    "selective_scan",
    "ssd",
    "wkv6",
]

ACTIVATIONS = (None, "silu")

# The operations that ``mamba2`` is made of, and the backend of each in whose place it may stand
_MAMBA2 = {"causal_conv1d": "causal_conv1d", "ssd": "mamba_ssm", "gated_rms_norm": "torch"}


def wkv6(
    r_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_w_BTHK: Tensor,
    u_HK: Tensor,
    initial_state_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""RWKV-6 time mixing, head by head, without a scale.

        y_t = r_t (S_{t-1} + diag(u) k_t^T v_t)
        S_t = diag(exp(log_w_t)) S_{t-1} + k_t^T v_t

    ``log_w <= 0`` is the logarithm of the decay, ``-exp(d)`` in RWKV's own notation; ``-inf`` forgets everything.

    Returns ``y [B,T,H,V]`` and the final state ``S_T [B,H,K,V]``.
    Source: Peng et al., "Eagle and Finch", arXiv:2404.05892, section 4.2.
    """
    named = {"r_BTHK": r_BTHK, "k_BTHK": k_BTHK, "v_BTHV": v_BTHV, "log_w_BTHK": log_w_BTHK, "u_HK": u_HK}
    if initial_state_BHKV is not None:
        named["initial_state_BHKV"] = initial_state_BHKV
    size = bind("wkv6", named)
    _require_not_positive("wkv6", "log_w_BTHK", log_w_BTHK, "it is the logarithm of a decay in [0, 1]")
    dtype = _compute_dtype(named)
    state = _state(initial_state_BHKV, (size["B"], size["H"], size["K"], size["V"]), dtype, v_BTHV.device)
    backend, function = _implementation("wkv6", v_BTHV.device)
    r, k, v = _values(backend, dtype, r_BTHK, k_BTHK, v_BTHV)
    # a decay as coarse as the values is taken at its word; a finer one keeps its precision
    log_w = log_w_BTHK if log_w_BTHK.dtype == v.dtype else log_w_BTHK.to(dtype)
    y_BTHV, final_BHKV = function(r, k, v, log_w, u_HK.to(dtype), state)
    return y_BTHV.to(v_BTHV.dtype), final_BHKV


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    initial_state_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Mamba-2's state-space recurrence, head by head.

        S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T
        y_t = S_t C_t                                  the state after its update; the skip D x stays in the model

    ``dt >= 0`` is after its softplus, ``A <= 0``; ``H`` is a multiple of ``G``: head h reads group ``h // (H / G)``.

    Returns ``y [B,T,H,P]`` and the final state ``S_T [B,H,P,N]``.
    Source: Dao & Gu, "Transformers are SSMs", arXiv:2405.21060, section 3.
    """
    named = {"x_BTHP": x_BTHP, "dt_BTH": dt_BTH, "A_H": A_H, "B_BTGN": B_BTGN, "C_BTGN": C_BTGN}
    if initial_state_BHPN is not None:
        named["initial_state_BHPN"] = initial_state_BHPN
    size = bind("ssd", named)
    if size["H"] % size["G"]:
        raise KernelInputError(f"ssd: H={size['H']} heads cannot share G={size['G']} groups; H must be a multiple of G")
    _require_not_positive("ssd", "A_H", A_H, "it is the rate of a decay: pass -exp(A_log)")
    _require_not_positive("ssd", "-dt_BTH", -dt_BTH, "a step is at least 0: pass softplus(dt + dt_bias)")
    dtype = _compute_dtype(named)
    state = _state(initial_state_BHPN, (size["B"], size["H"], size["P"], size["N"]), dtype, x_BTHP.device)
    backend, function = _implementation("ssd", x_BTHP.device)
    x, B, C = _values(backend, dtype, x_BTHP, B_BTGN, C_BTGN)
    y_BTHP, final_BHPN = function(x, dt_BTH.to(dtype), A_H.to(dtype), B, C, state)
    return y_BTHP.to(x_BTHP.dtype), final_BHPN


def causal_conv1d(
    x_BTC: Tensor,
    weight_Cw: Tensor,
    bias_C: Tensor,
    initial_state_BCw: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    r"""Depthwise causal convolution of width w, with an optional SiLU.

        y_tc = act(bias_c + sum_j weight_cj x_{t-w+1+j, c})        j = 0 .. w-1, positions before 0 from the state

    Returns ``y [B,T,C]`` and the last ``w-1`` inputs ``[B,C,w-1]``, oldest first; where T < w-1 they include the end of
    the initial state.
    """
    named = {"x_BTC": x_BTC, "weight_Cw": weight_Cw, "bias_C": bias_C}
    size = bind("causal_conv1d", named)
    if activation not in ACTIVATIONS:
        raise KernelInputError(f"causal_conv1d: activation must be None or 'silu', but is {activation!r}")
    shape = (size["B"], size["C"], size["w"] - 1)
    if initial_state_BCw is not None:
        if initial_state_BCw.shape != shape or not initial_state_BCw.is_floating_point():
            raise KernelInputError(
                f"causal_conv1d: initial_state_BCw must be floating point [B, C, w-1] = {list(shape)}, but is "
                f"{initial_state_BCw.dtype} {list(initial_state_BCw.shape)}"
            )
        named["initial_state_BCw"] = initial_state_BCw
    dtype = _compute_dtype(named)
    state = _state(initial_state_BCw, shape, dtype, x_BTC.device)
    backend, function = _implementation("causal_conv1d", x_BTC.device)
    (x,) = _values(backend, dtype, x_BTC)
    y_BTC, final_BCw = function(x, weight_Cw.to(dtype), bias_C.to(dtype), state, activation)
    return y_BTC.to(x_BTC.dtype), final_BCw


def fuses_mamba2(zxBCdt_BTJ: Tensor, inner: int, channels: int) -> bool:
    """Whether ``mamba2`` can run on this projection: I columns of z, C of the convolution, all widths in groups of 8.

    It can on a GPU where mamba-ssm and causal-conv1d run each part by itself, and where the positions fill whole chunks
    of the scan (``kernels.packages.ssd`` says why). Where a part is forced to another
    backend, or something is planted in it (``backends.force``, ``backends.wrap``), it must not: the part would not run.
    """
    device = zxBCdt_BTJ.device
    if device.type != "cuda" or zxBCdt_BTJ.dtype == torch.float64 or not _in_groups(zxBCdt_BTJ, inner, channels):
        return False
    if any(backends.altered(op) for op in _MAMBA2) or not fills_chunks(zxBCdt_BTJ.shape[1], zxBCdt_BTJ.dtype):
        return False
    if torch.compiler.is_compiling():
        return all(backends.traced(op, device.type)[0].name == name for op, name in _MAMBA2.items())
    return all(backends.select(op, device.type).name == name for op, name in _MAMBA2.items())


def _in_groups(zxBCdt_BTJ: Tensor, inner: int, channels: int) -> bool:
    """Whether the kernels, which read 8 channels at a time, find each part of a row at the start of a group."""
    return zxBCdt_BTJ.shape[-1] % 8 == inner % 8 == channels % 8 == 0


def mamba2(
    zxBCdt_BTJ: Tensor,
    conv_weight_Cw: Tensor,
    conv_bias_C: Tensor,
    dt_bias_H: Tensor,
    A_H: Tensor,
    D_H: Tensor,
    norm_weight_I: Tensor,
    eps: float,
    num_groups: int,
) -> Tensor:
    r"""Mamba-2 between its projections, from no state and without a final one: three operations and what joins them.

        z, xBC, dt = zxBCdt                      columns in this order; those after them are padding and are not read
        x, B, C = silu(conv(xBC))
        y = gated_rms_norm(ssd(x, softplus(dt + dt_bias), A, B, C) + D x, z)

    Where ``fuses_mamba2`` says so, and nowhere else. The parts count as called: their kernels are what runs.

    Returns ``y [B,T,I]``. Raises ``KernelInputError`` when shapes do not fit.
    Source: Dao & Gu, arXiv:2405.21060, section 7.1.
    """
    named = {"zxBCdt_BTJ": zxBCdt_BTJ, "conv_weight_Cw": conv_weight_Cw, "conv_bias_C": conv_bias_C}
    named |= {"dt_bias_H": dt_bias_H, "A_H": A_H, "D_H": D_H, "norm_weight_I": norm_weight_I}
    size = bind("mamba2", named)
    inner, channels, heads = size["I"], size["C"], size["H"]
    if size["J"] < inner + channels + heads or inner % heads or (channels - inner) % (2 * num_groups):
        raise KernelInputError(
            f"mamba2: J={size['J']} columns must hold z (I={inner}), xBC (C={channels}) and dt (H={heads}), I be a "
            f"multiple of H, and C - I one of twice the {num_groups} groups"
        )
    if not _in_groups(zxBCdt_BTJ, inner, channels):
        raise KernelInputError(
            f"mamba2: J={size['J']}, I={inner} and C={channels} must be multiples of 8; pad the projection, or run the "
            "parts one by one where fuses_mamba2 says no"
        )
    for op in ("causal_conv1d", "ssd"):
        _implementation(op, zxBCdt_BTJ.device)
    conv = conv_weight_Cw.float(), conv_bias_C.float()
    scan = dt_bias_H.float(), A_H.float(), D_H.float()
    return mamba2_mamba_ssm(zxBCdt_BTJ, *conv, *scan, norm_weight_I.float(), eps, inner // heads, num_groups)


def selective_scan(
    u_BTC: Tensor,
    delta_BTC: Tensor,
    A_CN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    D_C: Tensor,
    initial_state_BCN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Mamba-1's selective scan.

        S_t = exp(delta_t A) S_{t-1} + delta_t u_t B_t
        y_t = S_t C_t + D u_t

    ``delta >= 0`` is after its softplus and bias, ``A <= 0``.

    Returns ``y [B,T,C]`` and the final state ``S_T [B,C,N]``.
    Source: Gu & Dao, "Mamba", arXiv:2312.00752, section 3.2, algorithm 2.
    """
    named = {"u_BTC": u_BTC, "delta_BTC": delta_BTC, "A_CN": A_CN, "B_BTN": B_BTN, "C_BTN": C_BTN, "D_C": D_C}
    if initial_state_BCN is not None:
        named["initial_state_BCN"] = initial_state_BCN
    size = bind("selective_scan", named)
    _require_not_positive("selective_scan", "A_CN", A_CN, "it is the rate of a decay: pass -exp(A_log)")
    _require_not_positive("selective_scan", "-delta_BTC", -delta_BTC, "a step is at least 0: pass it after softplus")
    dtype = _compute_dtype(named)
    state = _state(initial_state_BCN, (size["B"], size["C"], size["N"]), dtype, u_BTC.device)
    backend, function = _implementation("selective_scan", u_BTC.device)
    u, B, C = _values(backend, dtype, u_BTC, B_BTN, C_BTN)
    inputs = (u, delta_BTC.to(dtype), A_CN.to(dtype), B, C, D_C.to(dtype))
    y_BTC, final_BCN = function(*inputs, state)
    return y_BTC.to(u_BTC.dtype), final_BCN


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    r"""Mean cross entropy of N predictions over V classes, in nats, with the gradient to the logits.

        loss = 1/N sum_n [ ln sum_v exp(logits_nv) - logits_{n, target_n} ]

    A logit may be ``-inf``: no chance. No target is left out, -100 neither; a target that is no class raises (on a GPU
    as its own error, at the next synchronisation). NaN and inf in any row make the loss NaN or inf, and gradients of
    that row only.

    Returns a scalar in the compute dtype. Raises ``KernelInputError``.
    """
    size = bind("cross_entropy", {"logits_NV": logits_NV})
    if targets_N.shape != (size["N"],) or targets_N.dtype != torch.int64 or targets_N.device != logits_NV.device:
        raise KernelInputError(
            f"cross_entropy: targets_N must be int64 [N] = [{size['N']}] on {logits_NV.device}, but is "
            f"{targets_N.dtype} {list(targets_N.shape)} on {targets_N.device}"
        )
    if _is_readable(targets_N):
        low, high = (int(bound) for bound in torch.aminmax(targets_N))
        if low < 0 or high >= size["V"]:
            raise KernelInputError(
                f"cross_entropy: targets must lie in 0 .. V-1 = {size['V'] - 1}, but range from {low} to {high}"
            )
    dtype = _compute_dtype({"logits_NV": logits_NV})
    backend, function = _implementation("cross_entropy", logits_NV.device)
    (logits,) = _values(backend, dtype, logits_NV)
    loss: Tensor = function(logits, targets_N)
    return loss


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Each vector divided by its root mean square, times a weight.

        y_i = w_i x_i / sqrt(mean_j x_j^2 + eps)

    Returns ``y [B,T,D]``. Source: Zhang & Sennrich, arXiv:1910.07467, section 4; eps as PyTorch has it.
    """
    named = {"x_BTD": x_BTD, "weight_D": weight_D}
    bind("rms_norm", named)
    dtype = _compute_dtype(named)
    backend, function = _implementation("rms_norm", x_BTD.device)
    (x,) = _values(backend, dtype, x_BTD)
    y_BTD: Tensor = function(x, weight_D.to(dtype), eps)
    return y_BTD.to(x_BTD.dtype)


def gated_rms_norm(x_BTD: Tensor, z_BTD: Tensor, weight_D: Tensor, eps: float = 1e-5, num_groups: int = 1) -> Tensor:
    r"""RMSNorm of a gated value; each of ``num_groups`` equal parts of D is normalised on its own.

        y = rms_norm(x silu(z), w)                       the gate comes before the norm

    Returns ``y [B,T,D]``. Source: Dao & Gu, arXiv:2405.21060, section 7.1, as the authors' code has it.
    """
    named = {"x_BTD": x_BTD, "z_BTD": z_BTD, "weight_D": weight_D}
    size = bind("gated_rms_norm", named)
    if num_groups < 1 or size["D"] % num_groups:
        raise KernelInputError(f"gated_rms_norm: num_groups={num_groups} must divide D={size['D']}")
    dtype = _compute_dtype(named)
    backend, function = _implementation("gated_rms_norm", x_BTD.device)
    x, z = _values(backend, dtype, x_BTD, z_BTD)
    y_BTD: Tensor = function(x, z, weight_D.to(dtype), eps, num_groups)
    return y_BTD.to(x_BTD.dtype)


def _implementation(op: str, device: torch.device) -> tuple[backends.Backend, Callable[..., Any]]:
    """The backend of this call and its function, which must then be called once."""
    if torch.compiler.is_compiling():
        return backends.traced(op, device.type)
    backend = backends.resolve(op, device.type)
    return backend, backends.function_of(backend)


def _compute_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32


def _values(backend: backends.Backend, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The values as the backend takes them: as they are where it knows their one dtype, else in ``dtype``."""
    given = {tensor.dtype for tensor in tensors}
    as_they_are = len(given) == 1 and dtype == torch.float32 and str(*given).removeprefix("torch.") in backend.native
    return list(tensors) if as_they_are else [tensor.to(dtype) for tensor in tensors]


def _state(state: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device) if state is None else state.to(dtype)


def _is_readable(tensor: Tensor) -> bool:
    """Whether a look at the values costs little: reading a GPU tensor would stall it, and a traced one has none."""
    # asked first: what it is asked of cannot all be traced
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def _require_not_positive(op: str, name: str, tensor: Tensor, why: str) -> None:
    """Refuse positive values. NaN passes, for it must be seen downstream."""
    if not _is_readable(tensor):
        return
    largest = tensor.detach().amax().item()
    if largest > 0:
        raise KernelInputError(f"{op}: {name} must not be positive, but its largest value is {largest:.6g}; {why}")
