"""Changes to a saved state of a training, as a bug in saving would make them: the manifest is changed with it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from harness.checkpoint import MANIFEST, OPTIMIZER, TRAINING
from harness.hashing import sha256_file


def edit(checkpoint: Path, name: str, change) -> None:
    """Change a file of a checkpoint and its hash in the manifest, as a bug in saving would."""
    path = checkpoint / name
    if name == TRAINING:
        training = json.loads(path.read_text())
        change(training)
        path.write_text(json.dumps(training))
    else:
        tensors = load_file(path)
        change(tensors)
        path.write_bytes(save(tensors))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest[name]["sha256"] = sha256_file(path)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def forget(prefix: str, name: str = OPTIMIZER):
    def change(tensors):
        for key in [key for key in tensors if key.startswith(prefix)]:
            tensors[key] = torch.zeros_like(tensors[key])

    return name, change


def wrong_random_state(tensors):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors["random.cpu"] = torch.get_rng_state()
