"""What the benchmarks write: one form of JSON for kernels, steps and starts, so that runs can be compared."""

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table

from harness.provenance import collect, installed

SCHEMA_VERSION = 1

MACHINE = ("torch", "triton", "mamba-ssm", "causal-conv1d")
# whose versions matter beside those of every report
PEERS = ("flash-linear-attention", "fla-core", "transformers")

Key = tuple[str, str, str, str, str]
Line = tuple[str, ...]


class RecordError(ValueError):
    """A file does not hold the times of a benchmark. The message says which file and what is wrong with it."""


class OtherSchemaError(RecordError):
    """A file was written by another version of the benchmarks. The message names both versions."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Row(_Model):
    """The times of one candidate, in ms of one call, one step or one start.

    benchmark    an operation (``wkv6``), ``step`` or ``start``
    case         its size; of a start, what its caches held
    candidate    who was timed; ``peer`` says that it is a program of others
    part         ``forward``, ``forward+backward``, ``step``, ``loop`` (a step as the training loop takes it) or
                 ``first step``
    mode         ``eager``, ``compiled`` or ``graphed``: replayed from a CUDA graph
    median_ms    of ``repeats`` samples, with the least and the distance between their quartiles (``spread_ms``); None
                 where the candidate did not run, and then ``error`` says why
    floor_ms     bytes that must be moved over the bandwidth of a copy, both of this run
    ratio        how many times as fast as ``ratio_to``: the median over the rounds in which both took their turn
    details      what else was seen: parameters, kernels a step, seconds of the first call ...
    """

    benchmark: str
    case: str
    candidate: str
    part: str
    mode: Literal["eager", "compiled", "graphed"]
    peer: bool = False
    repeats: int
    median_ms: float | None = None
    least_ms: float | None = None
    spread_ms: float | None = None
    tokens_per_s: float | None = None
    floor_ms: float | None = None
    ratio: float | None = None
    ratio_to: str | None = None
    details: dict[str, float | int | str] = {}
    error: str | None = None

    @property
    def key(self) -> Key:
        """What names the row in every run."""
        return (self.benchmark, self.case, self.candidate, self.part, self.mode)


class Record(_Model):
    """One run of a benchmark: where, with what, and the rows so far.

    device       name of the processor that was timed
    copy_gb_s    gigabytes a second, read and written, of a copy on the device; None where it was not measured
    """

    schema_version: Literal[1]
    benchmark: str
    command: str
    when_utc: str
    device: str
    copy_gb_s: float | None = None
    provenance: dict[str, Any]
    rows: tuple[Row, ...] = ()

    def with_rows(self, rows: Sequence[Row]) -> "Record":
        """The same run with more rows."""
        return self.model_copy(update={"rows": (*self.rows, *rows)})

    def machine(self) -> str:
        """One line: device, versions, commit and time."""
        versions: Mapping[str, str] = self.provenance["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in (*MACHINE, *PEERS) if name in versions)
        git = self.provenance["git"]
        commit = git["sha"][:10] + (" with changes" if git["dirty"] else "")
        copy = "" if self.copy_gb_s is None else f", copy {self.copy_gb_s:.0f} GB/s"
        return f"{self.device}{copy}, {named}, Python {versions['python']}, {commit}, {self.when_utc}"


def begin(benchmark: str, device: str, *, copy_gb_s: float | None = None, **more: str) -> Record:
    """A record without rows of what this process runs; ``more`` joins the provenance."""
    provenance = collect(device)
    provenance["versions"] |= installed(PEERS)
    name = provenance["gpu"] if device == "cuda" else provenance["cpu"]
    return Record(
        schema_version=SCHEMA_VERSION,
        benchmark=benchmark,
        command=shlex.join(["python", "-m", f"benchmarks.{benchmark}", *_without_json(sys.argv[1:])]),
        when_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        device=name or platform.machine(),
        copy_gb_s=copy_gb_s,
        provenance={**provenance, **more},
    )


def _without_json(arguments: Sequence[str]) -> list[str]:
    """Where the times were kept is of no use to whoever repeats the run."""
    kept: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before != "--json" and argument.partition("=")[0] != "--json":
            kept.append(argument)
    return kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark that writes a record takes."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--peers", action="store_true", help="on a GPU, time programs of others beside ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there as JSON")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, refused where the device is not there or has no peers."""
    # not at the top: comparing two files takes no torch
    import torch

    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave it out to measure on the CPU")
    if options.peers and options.device != "cuda":
        parser.error("--peers: the programs of others run on a GPU only; add --device cuda")
    return options


def write(record: Record, path: Path) -> None:
    """Replace the file by the record, at once or not at all: an interrupted run leaves what it had measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(record.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf8")
    partial.replace(path)


def read(path: Path) -> Record:
    """The record in a file. Raises ``RecordError``, and ``OtherSchemaError`` for one of another version."""
    try:
        text = path.read_text(encoding="utf8")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        for details in error.errors():
            if details["loc"] == ("schema_version",):
                raise OtherSchemaError(
                    f"{path}: its schema_version is {details['input']!r}, that of this version is {SCHEMA_VERSION}"
                ) from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecordError(f"{path}: {where}: {first['msg']}; expected what --json writes") from error


def table(headings: Sequence[str], lines: Sequence[Line], title: str, grouped_by: int = 0) -> Table:
    """The lines for a terminal, with a rule where the first ``grouped_by`` cells change."""
    shown = Table(title=title, title_justify="left")
    for heading in headings:
        # what is counted or timed is to the right of what is named
        shown.add_column(heading, justify="left" if heading in headings[:3] else "right")
    for index, line in enumerate(lines):
        if index and line[:grouped_by] != lines[index - 1][:grouped_by]:
            shown.add_section()
        shown.add_row(*line)
    return shown
