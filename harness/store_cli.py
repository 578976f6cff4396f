"""``python -m harness.store``: list, verify and prune the entries of a store."""

import argparse
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import Timeout
from rich.console import Console
from rich.table import Table

from harness.store import Entry, Store, StoreError, lock_of, read_entry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0; 1 when ``verify`` finds damage; 2 for bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    if not options.store.is_dir():
        parser.error(f"there is no store at {options.store}; give its directory with --store DIR")
    store = Store(options.store)
    if options.command == "list":
        return _list(store, console)
    if options.command == "verify":
        return _verify(store, console)
    if not (options.older_than is not None or options.kind or options.damaged or options.partial):
        parser.error("prune needs to know what to delete: --older-than DAYS, --kind KIND, --damaged or --partial")
    return _prune(store, console, options)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--store", type=Path, default=Path(".groundthink"), metavar="DIR", help="default: %(default)s")
    parser = argparse.ArgumentParser(prog="python -m harness.store", description="Look after stored results.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[shared], help="what is stored")
    commands.add_parser("verify", parents=[shared], help="compare every file with its hash")
    prune = commands.add_parser(
        "prune",
        parents=[shared],
        help="delete entries that meet every condition given; what is needed again is built again",
    )
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="made more than DAYS days ago")
    prune.add_argument("--kind", help="of this kind")
    state = prune.add_mutually_exclusive_group()
    state.add_argument("--damaged", action="store_true", help="refused by verify")
    state.add_argument("--partial", action="store_true", help="left by interrupted builds, instead of entries")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, delete nothing")
    return parser


def _list(store: Store, console: Console) -> int:
    table = Table("kind", "key", "made", "MB", "what")
    total = 0
    for path in store.paths():
        try:
            entry = read_entry(path)
        except StoreError as error:
            table.add_row(path.parent.name, path.name[:12], "", "", f"damaged: {error}")
            continue
        total += entry.num_bytes
        made = entry.created.strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.kind, entry.key[:12], made, f"{entry.num_bytes / 1e6:.1f}", _summary(entry))
    for path in store.partial_paths():
        table.add_row(path.parent.name, path.name[:12], "", f"{_size(path) / 1e6:.1f}", "partial")
    console.print(table)
    console.print(f"{len(store.paths())} entries, {total / 1e6:.1f} MB in {store.root}", highlight=False)
    return 0


def _summary(entry: Entry) -> str:
    """The plain values among the fields: what tells two entries apart for a person."""
    plain = {name: value for name, value in entry.fields.items() if isinstance(value, str | int | float)}
    return " ".join(f"{name}={str(value)[:16]}" for name, value in plain.items())


def _damage(store: Store, path: Path) -> str | None:
    try:
        store.sound(path)
    except StoreError as error:
        return str(error)
    return None


def _verify(store: Store, console: Console) -> int:
    damaged = [message for message in (_damage(store, path) for path in store.paths()) if message is not None]
    for message in damaged:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(store.paths())} entries, {len(damaged)} damaged", highlight=False)
    return 1 if damaged else 0


def _prune(store: Store, console: Console, options: argparse.Namespace) -> int:
    candidates = store.partial_paths() if options.partial else store.paths()
    doomed = [path for path in candidates if _selected(store, path, options)]
    freed = 0
    for path in doomed:
        size = _size(path)
        if _delete(path, options.dry_run, console):
            freed += size
    verb = "would free" if options.dry_run else "freed"
    console.print(f"{verb} {freed / 1e6:.1f} MB in {store.root}", highlight=False)
    return 0


def _selected(store: Store, path: Path, options: argparse.Namespace) -> bool:
    return (
        (options.kind is None or path.parent.name == options.kind)
        and (options.older_than is None or datetime.now(UTC) - _made(path) > timedelta(days=options.older_than))
        and (not options.damaged or _damage(store, path) is not None)
    )


def _made(path: Path) -> datetime:
    try:
        return read_entry(path).created
    except StoreError:
        # partial, or damaged in its manifest: the directory's own time is the best there is
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _delete(path: Path, dry_run: bool, console: Console) -> bool:
    """Delete an entry under its lock; one that is being built stays."""
    try:
        with lock_of(path).acquire(timeout=0):
            if not dry_run:
                shutil.rmtree(path)
    except Timeout:
        console.print(f"kept {path}: it is being built", highlight=False, soft_wrap=True)
        return False
    console.print(f"{'would delete' if dry_run else 'deleted'} {path}", highlight=False, soft_wrap=True)
    return True


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
