"""Hashes that name things: canonical JSON, files, the source that made a result. No torch."""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What of a package decides its results. Compiled files and caches are made from these.
SOURCE_SUFFIXES = frozenset({".py", ".cpp", ".cu", ".cuh", ".h", ".hpp"})


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. Raises TypeError or ValueError for what JSON lacks, like NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_json(value: Any) -> str:
    """Hash of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_sha256(modules: Iterable[str]) -> str:
    """Hash of the source of packages (every file below them) and of single modules, by import name.

    Nothing is imported but the parents of dotted names. The order of ``modules`` does not matter.
    """
    found: dict[str, str] = {}
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{module} is not a module of this project"
        if spec.submodule_search_locations is None:
            assert spec.origin is not None, f"{module} has no file"
            found[module] = sha256_file(Path(spec.origin))
            continue
        for root in map(Path, spec.submodule_search_locations):
            for path in sorted(root.rglob("*")):
                if path.suffix in SOURCE_SUFFIXES and path.is_file():
                    found[f"{module}/{path.relative_to(root).as_posix()}"] = sha256_file(path)
    return sha256_json(found)
