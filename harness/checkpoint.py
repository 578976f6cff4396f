"""Checkpoints: safetensors and JSON with a hash of each file. Nothing is pickled.

A checkpoint is a directory that appears all at once:

    model.safetensors      every parameter and buffer, once
    optimizer.safetensors  the moments and counts of AdamW by parameter name, and the random states   (resumable only)
    training.json          step, data cursor, monitors and the rest of the loop's state               (resumable only)
    manifest.json          size and sha256 of the files above
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.hashing import canonical_json, sha256_file
from harness.optim import named_states
from harness.runtime import random_states, restore_random_states

MODEL, OPTIMIZER, TRAINING, MANIFEST = "model.safetensors", "optimizer.safetensors", "training.json", "manifest.json"
_NAMED_IN_ERRORS = 5


class CheckpointError(HarnessError):
    """A checkpoint is missing, damaged or of another model. The message names the file and what to do."""


def save_weights(model: nn.Module, directory: Path) -> None:
    """Write the model's weights as a checkpoint at ``directory``, replacing what is there."""
    _write(directory, {MODEL: save_tensors(_unique_tensors(model))})


def save_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: Mapping[str, Any], directory: Path
) -> None:
    """Write everything that a training needs to go on as if it had never stopped. ``training`` is JSON."""
    files = {
        MODEL: save_tensors(_unique_tensors(model)),
        OPTIMIZER: save_tensors({**_optimizer_tensors(model, optimizer), **random_states()}),
        # a monitor may hold an infinity, which canonical JSON refuses
        TRAINING: json.dumps(training, sort_keys=True).encode(),
    }
    _write(directory, files)


def load_training(
    model: nn.Module, optimizer: torch.optim.Optimizer, directory: Path, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Restore model, optimizer and random states in place; returns ``training``.

    Raises ``CheckpointError`` when a file is damaged or ``training["identity"]`` is not ``identity``.
    """
    verify(directory, required=(MODEL, OPTIMIZER, TRAINING))
    training: dict[str, Any] = json.loads((directory / TRAINING).read_text(encoding="utf8"))
    differing = [key for key, value in identity.items() if training["identity"].get(key) != value]
    if differing:
        pairs = ", ".join(f"{key} {training['identity'].get(key)} there, {identity[key]} here" for key in differing)
        raise CheckpointError(f"{directory}: the checkpoint of another training ({pairs}); use another directory")
    _load_into(model, _read_tensors(directory / MODEL), directory / MODEL)
    tensors = _read_tensors(directory / OPTIMIZER)
    restore_random_states({name: tensors.pop(name) for name in list(tensors) if name.startswith("random.")})
    _restore_optimizer(model, optimizer, tensors, directory / OPTIMIZER)
    return training


def load_weights(path: Path, model: nn.Module) -> None:
    """Put weights from a file or a checkpoint directory into ``model``, in place.

    ``.safetensors``, or ``.pth`` and ``.pt`` holding a plain mapping of names to tensors (``weights_only=True``).
    A floating dtype is converted to the model's. Raises ``CheckpointError``.
    """
    if path.is_dir():
        verify(path, required=(MODEL,))
        path = path / MODEL
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    if path.suffix == ".safetensors":
        tensors = _read_tensors(path)
    elif path.suffix in {".pth", ".pt"}:
        tensors = _read_pickled(path)
    else:
        raise CheckpointError(f"{path}: unknown kind of checkpoint; allowed: .safetensors, .pth, .pt or a directory")
    _load_into(model, tensors, path)


def verify(directory: Path, required: tuple[str, ...] = ()) -> None:
    """Compare every file with the manifest. Raises ``CheckpointError`` naming the first that differs."""
    manifest_path = directory / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf8"))
        expected = {str(name): str(entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: no checkpoint here, {MANIFEST} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{manifest_path}: the manifest is damaged; {_remedy(directory)}") from error
    missing = [name for name in required if name not in expected]
    if missing:
        raise CheckpointError(f"{directory}: this checkpoint cannot serve here, it has no {', '.join(missing)}")
    for name, sha256 in expected.items():
        path = directory / name
        actual = sha256_file(path) if path.is_file() else "no file"
        if actual != sha256:
            raise CheckpointError(
                f"{path}: damaged\n  expected  sha256 {sha256}\n  actual    {actual}\n  next      {_remedy(directory)}"
            )


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remedy(directory: Path) -> str:
    return f"delete {directory} and run again: the training starts from an earlier state, or from the beginning"


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        # not safetensors' own writer: it reports a full disk as a format error
        write_synced(partial / name, content)
    manifest = {name: {"bytes": len(content), "sha256": sha256_file(partial / name)} for name, content in files.items()}
    write_synced(partial / MANIFEST, canonical_json(manifest).encode())
    sync_directory(partial)
    if directory.exists():
        shutil.rmtree(directory)
    partial.replace(directory)
    sync_directory(directory.parent)


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor under its first name only: a tied head is the embedding."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor.detach().cpu().contiguous()
    return result


def _load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    targets = model.state_dict(keep_vars=True)
    present = {id(target) for name, target in targets.items() if name in tensors}
    # a second name of a tensor that is there may be missing
    missing = [name for name, target in targets.items() if name not in tensors and id(target) not in present]
    unexpected = sorted(tensors.keys() - targets.keys())
    misshapen = [
        f"{name} {list(tensor.shape)} instead of {list(targets[name].shape)}"
        for name, tensor in sorted(tensors.items())
        if name in targets and tensor.shape != targets[name].shape
    ]
    complaints = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "tied in the model, different in the file": _torn(targets, tensors),
    }
    if any(complaints.values()):
        raise CheckpointError(
            f"{path}: these are the weights of another model\n"
            + "\n".join(f"  {what}  {_first(names)}" for what, names in complaints.items() if names)
            + "\n  next  give the --model and scale that wrote this checkpoint"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)


def _torn(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names that are one tensor in the model and several in the file: loading would keep only the last."""
    first: dict[int, str] = {}
    for name in sorted(tensors.keys() & targets.keys()):
        first.setdefault(id(targets[name]), name)
    return [
        f"{name} and {first[id(targets[name])]}"
        for name, tensor in sorted(tensors.items())
        if name in targets and name != first[id(targets[name])]
        if not torch.equal(tensor, tensors[first[id(targets[name])]])
    ]


def require_finite(path: Path, model: nn.Module) -> None:
    """Refuse weights that hold NaN or an infinity: nothing can be measured on them. Raises ``CheckpointError``."""
    broken = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(
            f"{path}: weights that are not finite\n  what  {_first(broken)}\n"
            "  next  the training that wrote it diverged; give a checkpoint from before"
        )


def _first(names: list[str]) -> str:
    more = len(names) - _NAMED_IN_ERRORS
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or cut short: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: not a file of plain tensors (opened with weights_only=True: nothing in it is executed). "
            f"Save model.state_dict(), best as safetensors. Torch says: {reason}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        found = _first([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, found {found}. Save model.state_dict()")
    return content


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": tensor.detach().cpu().contiguous()
        for name, state in named_states(model, optimizer)
        for key, tensor in state.items()
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path
) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        if name not in parameters:
            raise CheckpointError(f"{path}: has {key} of {name}, which this model lacks; it belongs to another model")
        # AdamW's own loader converts moments to the parameter's dtype; device is all that may differ here
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)
