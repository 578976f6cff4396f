r"""The modules of mamba-ssm that hold the SSD kernels: an instance of our own, with one configuration a kernel.

An instance of our own: ``import mamba_ssm`` takes 8 s, for it imports every model and transformers with them, and it
fails where ``selective_scan_cuda`` is missing, which Mamba-2 never calls. So only the files of the SSD kernels are
executed, unchanged, and afterwards they are taken out of ``sys.modules`` again: who imports mamba-ssm himself gets the
package as it is, not what is fixed here.

One configuration a kernel: the package measures up to nine of them at the first call. That takes half a minute, and
the winner differs from run to run, and with it the last bits of the result. ``CONFIGS`` holds the one that is used.

Deterministic: the gradients of B, C, dt and A are summed tile by tile instead of by atomic additions. The harness
promises that a training can be repeated bit by bit.

IEEE: products of fp32 are computed in fp32. Triton's default is TF32, whose error of 1e-3 is not what fp32 promises.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from threading import Lock
from types import ModuleType
from typing import Any

from kernels.backends import BackendError
from kernels.packages.installed import HOW_TO_INSTALL

_PACKAGE = "mamba_ssm"
_COMBINED, _NORM, _DETERMINISM = "ops.triton.ssd_combined", "ops.triton.layernorm_gated", "utils.determinism"
_lock = Lock()

# Of module and kernel. Sizes are in elements: of a chunk, a head (P) or a state (N) - 64 to 128 at every scale of ours.
CONFIGS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "ops.triton.ssd_bmm": {
        "_bmm_chunk_fwd_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "num_stages": 4},
        "_bmm_chunk_bwd_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_CS": 32, "num_stages": 4},
    },
    "ops.triton.ssd_chunk_state": {
        "_chunk_cumsum_fwd_kernel": {"BLOCK_SIZE_H": 4},
        "_chunk_cumsum_bwd_kernel": {"BLOCK_SIZE_H": 4},
        "_chunk_state_fwd_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "num_stages": 4},
        "_chunk_state_bwd_db_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64},
    },
    "ops.triton.ssd_state_passing": {
        "_state_passing_fwd_kernel": {"BLOCK_SIZE": 256},
        "_state_passing_bwd_kernel": {"BLOCK_SIZE": 256},
    },
    "ops.triton.ssd_chunk_scan": {
        "_chunk_scan_fwd_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "num_stages": 4},
        "_chunk_scan_bwd_dstates_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32, "num_stages": 4},
        "_chunk_scan_bwd_dc_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64},
        "_chunk_scan_bwd_dcb_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64},
        "_chunk_scan_bwd_ddAcs_stable_kernel": {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64},
    },
    _COMBINED: {
        "_chunk_scan_chunk_state_bwd_dx_kernel": {
            "BLOCK_SIZE_M": 64,
            "BLOCK_SIZE_N": 64,
            "BLOCK_SIZE_K": 32,
            "num_stages": 4,
        },
    },
}

# Least width of a tile over all configurations of a kernel: from it the package takes how many partial sums it keeps.
_TILE_WIDTHS = (
    ("ops.triton.ssd_chunk_state", "_CHUNK_STATE_BWD_DB_MIN_BLOCK_N", "_chunk_state_bwd_db_kernel"),
    ("ops.triton.ssd_chunk_scan", "_CHUNK_SCAN_BWD_DC_MIN_BLOCK_N", "_chunk_scan_bwd_dc_kernel"),
    (_COMBINED, "_CHUNK_SCAN_CHUNK_STATE_BWD_DX_MIN_BLOCK_N", "_chunk_scan_chunk_state_bwd_dx_kernel"),
)


@cache
def modules() -> Mapping[str, ModuleType]:
    """The modules by their names within the package, ready to run.

    Raises ``BackendError`` when the package is missing or is not one whose kernels are known here.
    """
    found = _import_apart([*CONFIGS, _NORM, _DETERMINISM])
    for module, configs in CONFIGS.items():
        for kernel, config in configs.items():
            _known(found, module, kernel).configs = [_triton_config(config)]
    for module, constant, kernel in _TILE_WIDTHS:
        _known(found, module, constant)
        setattr(found[module], constant, CONFIGS[module][kernel]["BLOCK_SIZE_N"])
    _known(found, _DETERMINISM, "set_deterministic_mode")(True)
    return found


def combined() -> ModuleType:
    """The module with the forward and the backward pass of the SSD."""
    return modules()[_COMBINED]


def gated_norm() -> ModuleType:
    """The module with the gated RMSNorm."""
    return modules()[_NORM]


def _import_apart(names: Sequence[str]) -> dict[str, ModuleType]:
    """Import modules of the package without running its ``__init__``, and leave no trace in ``sys.modules``."""
    with _lock:
        others = _taken_out()
        try:
            spec = importlib.util.find_spec(_PACKAGE)
            if spec is None or spec.submodule_search_locations is None:
                raise BackendError(f"{_PACKAGE} is not installed as a package: {HOW_TO_INSTALL}")
            package = ModuleType(_PACKAGE)
            package.__path__ = list(spec.submodule_search_locations)
            sys.modules[_PACKAGE] = package
            return {name: importlib.import_module(f"{_PACKAGE}.{name}") for name in names}
        finally:
            _taken_out()
            sys.modules.update(others)


def _taken_out() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == _PACKAGE}


def _known(found: Mapping[str, ModuleType], module: str, name: str) -> Any:
    if not hasattr(found[module], name):
        raise BackendError(
            f"{_PACKAGE}.{module} has no {name}: the kernels of this mamba-ssm are not known here. {HOW_TO_INSTALL}"
        )
    return getattr(found[module], name)


def _triton_config(config: Mapping[str, int]) -> Any:
    import triton

    sizes: dict[str, Any] = {name: size for name, size in config.items() if name.startswith("BLOCK_SIZE")}
    options = {name: value for name, value in config.items() if name not in sizes}
    if not triton.knobs.runtime.interpret:  # the interpreter computes in fp32 and knows no such option
        sizes["allowed_dot_input_precisions"] = ("ieee",)
    return triton.Config(sizes, **options)
