"""What the processes of one session share: a directory of small files, each written whole or not at all.

Workers of pytest-xdist are separate processes that may die at any moment. A file that exists is complete, and what was
planned and has no file was not finished.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from filelock import ReadWriteLock

from harness.errors import HarnessError
from harness.records import Status

POLL_SECONDS = 0.1


class Board:
    """Plan, finished items, and what checks published: runs, figures, numbers by item.

    waits  whether an item may wait for one that runs in another process. True only where items are handed out in
           order, so that what is waited for is always running or about to.
    """

    def __init__(self, directory: Path, waits: bool):
        self.directory = directory
        self.waits = waits

    def plan(self, checks_by_nodeid: dict[str, str]) -> None:
        """Publish which items this session holds and which check each belongs to. All workers publish the same."""
        self._write("plan", checks_by_nodeid)

    def planned(self) -> dict[str, str]:
        """Check by node id; empty when no process got as far as a plan."""
        path = self.directory / "plan.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def finish(self, nodeid: str, status: Status) -> None:
        """Publish how an item ended. A later call replaces an earlier one."""
        self._write(self._name(nodeid), {"nodeid": nodeid, "status": status})

    def status(self, nodeid: str) -> Status | None:
        """How an item ended; None while it has not."""
        path = self.directory / f"{self._name(nodeid)}.json"
        return Status(json.loads(path.read_text())["status"]) if path.exists() else None

    def close(self) -> None:
        """End every wait: the session is over."""
        self._write("closed", True)

    def wait_for(self, nodeids: Iterable[str]) -> list[Status | None]:
        """The statuses of these items, after waiting for those that other processes run; None for the unfinished."""
        closed = self.directory / "closed.json"
        statuses = []
        for nodeid in nodeids:
            while (status := self.status(nodeid)) is None and self.waits and not closed.exists():
                time.sleep(POLL_SECONDS)
            statuses.append(status)
        return statuses

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """While an item runs that others may run beside."""
        with self._quiet.read_lock():
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While an item runs that times the machine: waits until no other item of the session runs."""
        with self._quiet.write_lock():
            yield

    @cached_property
    def _quiet(self) -> ReadWriteLock:
        return ReadWriteLock(self.directory / "quiet.db")

    def publish_run(self, run: dict[str, object]) -> None:
        """Publish a trained run for the plots of the report; the same run published twice counts once."""
        self._write(f"run-{self._name(json.dumps(run, sort_keys=True))}", run)

    def runs(self) -> list[dict[str, object]]:
        """All published runs, in a stable order."""
        runs = [json.loads(path.read_text()) for path in self.directory.glob("run-*.json")]
        return sorted(runs, key=lambda run: (str(run["name"]), int(run["seed"])))

    def publish_figure(self, figure: dict[str, str]) -> None:
        """Publish a figure ``{"name", "check", "nodeid", "figure"}``; an item that runs again replaces its own.

        Raises HarnessError when another item has published under that name: one of the two would be lost.
        """
        taken = self.directory / f"figure-{figure['name']}.json"
        owner = json.loads(taken.read_text())["nodeid"] if taken.exists() else figure["nodeid"]
        if owner != figure["nodeid"]:
            raise HarnessError(
                f"the figure {figure['name']!r} is published by {owner} already; "
                "name it after what it shows: check, branch, seed"
            )
        self._write(taken.stem, figure)

    def figures(self) -> list[dict[str, str]]:
        """All published figures, by name."""
        return [json.loads(path.read_text()) for path in sorted(self.directory.glob("figure-*.json"))]

    def publish_items(self, nodeid: str, items: dict[str, object]) -> None:
        """Publish one metric by item; a test that runs again replaces its own.

        Raises HarnessError when another test has published the same metric of the same seed.
        """
        key = json.dumps([items["check"], items["metric"], items["seed"]])
        taken = self.directory / f"items-{self._name(key)}.json"
        owner = json.loads(taken.read_text())["nodeid"] if taken.exists() else nodeid
        if owner != nodeid:
            raise HarnessError(
                f"{items['check']}.{items['metric']} of seed {items['seed']} is published by item in {owner} already; "
                "publish it once"
            )
        self._write(taken.stem, {"nodeid": nodeid, "items": items})

    def items(self) -> list[dict[str, object]]:
        """All published metrics by item."""
        return [json.loads(path.read_text())["items"] for path in sorted(self.directory.glob("items-*.json"))]

    def _name(self, nodeid: str) -> str:
        return hashlib.sha256(nodeid.encode()).hexdigest()[:32]

    def _write(self, name: str, content: object) -> None:
        temporary = self.directory / f"{name}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.directory / f"{name}.json")


def group_by_check(demands: dict[str, str]) -> dict[str, list[str]]:
    """Node ids by check, in order."""
    grouped: dict[str, list[str]] = {}
    for nodeid, check_id in demands.items():
        grouped.setdefault(check_id, []).append(nodeid)
    return grouped
