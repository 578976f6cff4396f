"""How fixtures tell the report which trainings stand behind its numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest

from harness.plugin.options import BOARD


class PublishRun(Protocol):
    """Name a trained run for the plots of the report."""

    def __call__(self, run_dir: Path, *, seed: int, name: str, baselines: Mapping[str, float] | None = None) -> None:
        """See the fixture ``publish_run``."""


@pytest.fixture(scope="session")
def publish_run(request: pytest.FixtureRequest) -> PublishRun:
    """``publish_run(run_dir, seed=0, name="GF-MH", baselines={"unigram": 7.18})``.

    run_dir holds metrics.jsonl; baselines are losses in nats a token, drawn as horizontal lines. Publishing the same
    run again, from any worker, changes nothing.
    """
    board = request.config.stash[BOARD]

    def publish(run_dir: Path, *, seed: int, name: str, baselines: Mapping[str, float] | None = None) -> None:
        board.publish_run(
            {"directory": str(run_dir.resolve()), "seed": seed, "name": name, "baselines": dict(baselines or {})}
        )

    return publish
