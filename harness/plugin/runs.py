"""What suites give the report beside records: trainings and figures for its plots, numbers by item to compare it by."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import pytest

from harness.errors import HarnessError
from harness.figures import Figure, figure_to_json
from harness.items import ItemSet
from harness.plugin.judge import EVIDENCE
from harness.plugin.options import BOARD

EXAMPLE = "evolution-dose-seed-0"


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


class PublishFigure(Protocol):
    """Hand a figure to the report."""

    def __call__(self, name: str, figure: Figure) -> None:
        """See the fixture ``publish_figure``."""


@pytest.fixture
def publish_figure(request: pytest.FixtureRequest) -> PublishFigure:
    """``publish_figure("evolution-dose-seed-0", LineFigure(...))``, in a check: drawn and kept with the report.

    name is that of the files, ``plots/NAME.png`` and ``plots/NAME.json``: lower-case letters, digits and hyphens, and
    unique in a session. Raises HarnessError for any other, and for one that another test has taken.
    """
    board, node = request.config.stash[BOARD], request.node
    assert EVIDENCE in node.stash, "publish_figure serves checks: mark the test with @pytest.mark.check('ID')"
    check = node.stash[EVIDENCE].check.id

    def publish(name: str, figure: Figure) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            raise HarnessError(f"figure name {name!r}: use lower-case letters, digits and hyphens, as in {EXAMPLE!r}")
        board.publish_figure({"name": name, "check": check, "nodeid": node.nodeid, "figure": figure_to_json(figure)})

    return publish


class PublishItems(Protocol):
    """Hand a metric to the report by what is resampled."""

    def __call__(
        self,
        metric: str,
        values: Mapping[str, tuple[float, float]],
        *,
        seed: int,
        unit: str,
        direction: Literal["higher", "lower", ""],
    ) -> None:
        """See the fixture ``publish_items``."""


@pytest.fixture
def publish_items(request: pytest.FixtureRequest) -> PublishItems:
    """``publish_items("val_loss", {"0": (912.5, 256)}, seed=0, unit="nats/token", direction="lower")``, in a check.

    values holds sum and count by the id of the document, dialogue or question that is resampled; an answer that is
    right or wrong has the count 1. Ids name the same thing in every run on the same corpus and tokenizer, whose hashes
    are those of the check's records. ``python -m harness.compare`` then pairs two reports. Raises HarnessError when
    another test has published the same metric of the same seed, pydantic.ValidationError for values without a count.
    """
    board, node = request.config.stash[BOARD], request.node
    assert EVIDENCE in node.stash, "publish_items serves checks: mark the test with @pytest.mark.check('ID')"
    evidence = node.stash[EVIDENCE]

    def publish(
        metric: str,
        values: Mapping[str, tuple[float, float]],
        *,
        seed: int,
        unit: str,
        direction: Literal["higher", "lower", ""],
    ) -> None:
        provenance = evidence.provenance
        items = ItemSet(
            check=evidence.check.id,
            metric=metric,
            seed=seed,
            unit=unit,
            direction=direction,
            corpus_sha256=provenance.corpus_sha256,
            tokenizer_sha256=provenance.tokenizer_sha256,
            items=dict(values),
        )
        board.publish_items(node.nodeid, items.model_dump(mode="json"))

    return publish
