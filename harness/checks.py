"""The table of checks, read from checks.toml: what each claims, why, what it needs and where it lives."""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from harness.errors import HarnessError, did_you_mean
from harness.thresholds import explain_validation

CHECKS_PATH = Path(__file__).with_name("checks.toml")

MAIN_TRAININGS = "main"
"""The recipe of one training a seed. A check that rests on it needs evidence of every seed (graduation/matrix.py),
unless ``Check.seeds`` says that the first is enough."""

# Nominal parameters of each scale, by the marker that selects it; smallest first.
SCALES = {"tiny": "3.5M", "small": "8M", "medium": "30M", "large": "125M"}
MARKERS = {scale: marker for marker, scale in SCALES.items()}

Scale = Literal["3.5M", "8M", "30M", "125M"]


class CheckError(HarnessError):
    """checks.toml is malformed, or a check id is unknown."""


class Check(BaseModel):
    """One row of the table.

    claim         what PASS asserts; why: what goes wrong if it does not hold; method: how it is measured
    needs         checks that must not have failed before this one means anything
    suite, file   directory under suites/ and the test file in it
    scales        scales at which it runs; what a scale demands is in graduation/evidence.toml
    category      the score it feeds
    branches      ``hybrid`` where the claim compares two branches: NA for a model with one
    exempt        which other subjects the claim does not apply to; only with it may a demanded check end NA
    alone         it times the machine: runs last, and while no other process of the session measures or trains
    study         opt-in: runs only where its file or test is named
    trainings     recipes of ``fixtures.recipes`` that it needs
    seeds         of which of the session's seeds it needs evidence where it rests on the main trainings: ``first``
                  where the claim is about a training that only the first one has
    known_answers modules that register its known-answer tests
    mutants       broken subjects that must FAIL it
    next          what to do when it fails
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    claim: str
    why: str
    method: str
    needs: tuple[str, ...] = ()
    suite: Literal["gates", "state", "canaries", "diagnostics", "graduation"]
    file: str = Field(pattern=r"^test_\w+\.py$")
    scales: tuple[Scale, ...] = Field(min_length=1)
    category: Literal["stability", "canary", "scaling", "resource", "none"]
    branches: Literal["any", "hybrid"] = "any"
    exempt: str = ""
    alone: bool = False
    study: bool = False
    trainings: tuple[str, ...] = ()
    seeds: Literal["all", "first"] = "all"
    known_answers: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()
    next: str
    source: str

    @model_validator(mode="after")
    def _first_seed_has_more(self) -> Self:
        if self.seeds == "first" and not (MAIN_TRAININGS in self.trainings and len(self.trainings) > 1):
            raise ValueError(
                f'seeds = "first" is for a check that compares the main trainings with one that the first seed alone '
                f"has: name both in trainings, which is {list(self.trainings)}, or leave seeds out"
            )
        return self

    @property
    def path(self) -> str:
        """The test file, relative to the project."""
        return f"suites/{self.suite}/{self.file}"


class Checks(Mapping[str, Check]):
    """All checks by id, in the order of the file, whose path and SHA-256 they keep."""

    def __init__(self, checks: Mapping[str, Check], path: Path = CHECKS_PATH, sha256: str = ""):
        self._checks = dict(checks)
        self.path = path
        self.sha256 = sha256

    def __getitem__(self, check_id: str) -> Check:
        return self._checks[check_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checks)

    def __len__(self) -> int:
        return len(self._checks)

    def find(self, name: str) -> Check:
        """The check of that id, whatever its case. Raises CheckError with near matches."""
        by_lower = {check_id.lower(): check for check_id, check in self._checks.items()}
        if name.lower() not in by_lower:
            raise CheckError(f"no check has the id {name!r}; {did_you_mean(name, self._checks)}")
        return by_lower[name.lower()]

    def depths(self, extra_needs: Mapping[str, set[str]]) -> dict[str, int]:
        """Length of the longest chain of prerequisites below each check: sorting by it is a valid order.

        extra_needs holds prerequisites that tests add with their marker. Raises CheckError for a cycle.
        """
        graph = {check_id: {*check.needs, *extra_needs.get(check_id, ())} for check_id, check in self._checks.items()}
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise CheckError(f"checks need each other in a circle: {' -> '.join(error.args[1])}") from error
        depths: dict[str, int] = {}
        for check_id in order:
            depths[check_id] = max((depths[need] + 1 for need in graph[check_id]), default=0)
        return depths


def load_checks(path: Path = CHECKS_PATH) -> Checks:
    """Read and validate a table of checks. Raises CheckError that names the entry at fault."""
    try:
        content = path.read_bytes()
        raw = tomllib.loads(content.decode())
        rows = {check_id: {"id": check_id, **row} for check_id, row in raw.items()}
        found = TypeAdapter(dict[str, Check]).validate_python(rows)
        table = Checks(found, path, hashlib.sha256(content).hexdigest())
    except tomllib.TOMLDecodeError as error:
        raise CheckError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise CheckError(f"{path}: {explain_validation(error)}") from error
    for check in table.values():
        for need in check.needs:
            if need not in table:
                raise CheckError(f"{path}: [{check.id}] needs {need!r}, which is no check; {did_you_mean(need, table)}")
    table.depths({})
    return table
