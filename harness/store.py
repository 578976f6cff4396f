"""A store of results by what made them: the same question is computed once, by one process, and never again.

    <root>/<kind>/<key>/           an entry; appears all at once, manifest.json says what it is and hashes its files
    <root>/<kind>/<key>.partial/   being built, or left by a build that was interrupted
    <root>/<kind>/<key>.lock       who builds

``python -m harness.store list | verify | prune`` looks after it. No torch.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness.errors import HarnessError
from harness.hashing import canonical_json, sha256_file, sha256_json

MANIFEST, PARTIAL, LOCK = "manifest.json", ".partial", ".lock"
_SCHEMA_VERSION = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class StoreError(HarnessError):
    """The store cannot serve: no room, no permission, a damaged entry. The message says what to do."""


@dataclass(frozen=True)
class Entry:
    """One result. fields is what made it, created an ISO time, files the size and sha256 by relative name."""

    kind: str
    key: str
    path: Path
    fields: dict[str, Any]
    created: datetime
    files: dict[str, dict[str, Any]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(int(file["bytes"]) for file in self.files.values())

    def damage(self) -> str | None:
        """The first difference from the manifest, None for a sound entry."""
        present = _file_names(self.path)
        for name in sorted(present - self.files.keys()):
            return f"{self.path / name}: a file that the manifest does not list"
        for name, file in self.files.items():
            if name not in present:
                return f"{self.path / name}: missing"
            actual = sha256_file(self.path / name)
            if actual != file["sha256"]:
                return f"{self.path / name}: expected sha256 {file['sha256']}, found {actual}"
        return None


class Store:
    """Results under a root directory, which is made when it is first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sound: set[Path] = set()

    def get_or_build(
        self,
        kind: str,
        key_fields: Mapping[str, Any],
        build: Callable[[Path], None],
        *,
        resumable: bool = False,
    ) -> Entry:
        """The entry for ``key_fields``; ``build`` fills a directory if there is none yet.

        Everything that decides the result belongs into ``key_fields`` (JSON values). Of several processes one
        builds and the others wait. If ``build`` raises, or the process dies, nothing is stored; with ``resumable``
        the next build is handed the directory as it was left, otherwise an empty one. Files are checked against the
        manifest once a process. Raises ``StoreError``.
        """
        fields = dict(key_fields)
        path = self.path_of(kind, fields)
        if not path.is_dir():
            with self._explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(_beside(path, LOCK)):
                    # another process may have built it while this one waited
                    if not path.is_dir():
                        build(self._begin(path, resumable))
                        self._publish(path, fields)
        return self.sound(path)

    def get_or_build_all(
        self,
        kind: str,
        all_key_fields: Sequence[Mapping[str, Any]],
        build: Callable[[Mapping[int, Path], Callable[[int], None]], None],
        *,
        resumable: bool = False,
    ) -> list[Entry]:
        """The entries for several ``key_fields``, in order; ``build`` fills the directories of those that are absent.

        It is given directories by index and a function to call with the index of each as soon as that one is filled:
        then it is stored, whatever becomes of the others. Entries that another process builds are left to it and waited
        for; should it fail, ``build`` is called again with one of them. The rest is as ``get_or_build`` says.
        """
        all_fields = [dict(fields) for fields in all_key_fields]
        paths = [self.path_of(kind, fields) for fields in all_fields]
        with ExitStack() as stack:
            locks: dict[int, FileLock] = {}
            for index, path in enumerate(paths):
                if not path.is_dir() and path not in paths[:index]:
                    with self._explained(path), suppress(Timeout):
                        path.parent.mkdir(parents=True, exist_ok=True)
                        locks[index] = stack.enter_context(FileLock(_beside(path, LOCK), timeout=0))
            directories = {}
            for index in locks:
                if not paths[index].is_dir():
                    with self._explained(paths[index]):
                        directories[index] = self._begin(paths[index], resumable)

            def filled(index: int) -> None:
                with self._explained(paths[index]):
                    self._publish(paths[index], all_fields[index])
                locks[index].release()

            if directories:
                with self._explained(paths[min(directories)]):
                    build(directories, filled)

        def build_one(index: int) -> Callable[[Path], None]:
            return lambda directory: build({index: directory}, lambda _: None)

        return [
            self.get_or_build(kind, fields, build_one(index), resumable=resumable)
            for index, fields in enumerate(all_fields)
        ]

    def path_of(self, kind: str, key_fields: Mapping[str, Any]) -> Path:
        """Where the entry for ``key_fields`` is, or would be."""
        return self.root / kind / sha256_json({"kind": kind, "fields": dict(key_fields)})

    def sound(self, path: Path) -> Entry:
        """The entry at ``path``, after checking its files. Raises ``StoreError`` when it is damaged."""
        try:
            entry = read_entry(path)
            damage = None if path in self._sound else entry.damage()
        except StoreError as error:
            damage = str(error)
        if damage is not None:
            raise StoreError(
                f"the store entry {path} is damaged\n  what  {damage}\n"
                f"  next  python -m harness.store prune --damaged --store {self.root}   (it is built again when needed)"
            )
        self._sound.add(path)
        return entry

    def paths(self) -> list[Path]:
        """The directories of all entries, sorted; damaged ones included, partial ones not."""
        return sorted(path for path in self.root.glob("*/*") if path.is_dir() and path.suffix != PARTIAL)

    def partial_paths(self) -> list[Path]:
        """The directories of builds that run or were interrupted."""
        return sorted(path for path in self.root.glob(f"*/*{PARTIAL}") if path.is_dir())

    def _begin(self, path: Path, resumable: bool) -> Path:
        """The directory to build the entry at ``path`` in."""
        partial = _beside(path, PARTIAL)
        if not resumable and partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        # a manifest here was written by a build that died before its last move: the files are what counts
        (partial / MANIFEST).unlink(missing_ok=True)
        return partial

    def _publish(self, path: Path, fields: dict[str, Any]) -> None:
        """Store what was built for ``path``, all at once."""
        partial = _beside(path, PARTIAL)
        files = {
            name: {"bytes": (partial / name).stat().st_size, "sha256": sha256_file(partial / name)}
            for name in sorted(_file_names(partial))
        }
        manifest = {
            "schema_version": _SCHEMA_VERSION,
            "kind": path.parent.name,
            "key": path.name,
            "fields": fields,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
        }
        with (partial / MANIFEST).open("w", encoding="utf8") as handle:
            handle.write(canonical_json(manifest))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)  # noqa: PTH105 (the name says that it is atomic)
        self._sound.add(path)

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        """Say what a full disk or a missing permission means here; any other error passes."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise StoreError(self._full_message(path)) from error
            if isinstance(error, PermissionError):
                raise StoreError(
                    f"the store {self.root} cannot be written: {error.strerror} ({error.filename}); "
                    f"make it writable or choose another with --store DIR"
                ) from error
            raise

    def _full_message(self, path: Path) -> str:
        like = [entry.num_bytes for entry in map(_readable, self.paths()) if entry and entry.kind == path.parent.name]
        needed = f"about {_megabytes(max(like))}, as the largest {path.parent.name} so far" if like else "unknown"
        partial = _beside(path, PARTIAL)
        written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        return (
            f"the disk of the store {self.root} is full; nothing was stored\n"
            f"  wanted   {path}\n"
            f"  needed   {needed}\n"
            f"  written  {_megabytes(written)}, kept for the next run; free now {_megabytes(_free_bytes(self.root))}\n"
            f"  next     python -m harness.store prune --older-than 30 --store {self.root}   or --store DIR elsewhere"
        )


def read_entry(path: Path) -> Entry:
    """The entry at ``path`` as its manifest describes it; files are not opened. Raises ``StoreError``."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
        created = datetime.fromisoformat(manifest["created"])
        entry = Entry(manifest["kind"], manifest["key"], path, manifest["fields"], created, manifest["files"])
        version = manifest["schema_version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path / MANIFEST}: unreadable ({type(error).__name__}: {error})") from error
    if version != _SCHEMA_VERSION:
        raise StoreError(f"{path / MANIFEST}: schema version {version}, this program reads {_SCHEMA_VERSION}")
    if entry.key != path.name or sha256_json({"kind": entry.kind, "fields": entry.fields}) != entry.key:
        raise StoreError(f"{path / MANIFEST}: its fields do not hash to the entry's name")
    return entry


def is_begun(path: Path) -> bool:
    """Whether a build of the entry at ``path`` runs or was interrupted."""
    return _beside(path, PARTIAL).is_dir()


def lock_of(path: Path) -> FileLock:
    """The lock under which the entry at ``path`` (or its partial directory) is built."""
    return FileLock(_beside(path.with_name(path.name.removesuffix(PARTIAL)), LOCK))


def _readable(path: Path) -> Entry | None:
    try:
        return read_entry(path)
    except StoreError:
        return None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _file_names(directory: Path) -> set[str]:
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    return names - {MANIFEST}


def _free_bytes(root: Path) -> int:
    existing = next(path for path in [root.absolute(), *root.absolute().parents] if path.exists())
    return shutil.disk_usage(existing).free


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    from harness.store_cli import main

    raise SystemExit(main())
