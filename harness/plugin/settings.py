"""What a run over the suites was asked to do: options parsed once, as plain values."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.checks import MARKERS, SCALES
from harness.comparison import Metrics
from harness.errors import HarnessError, did_you_mean
from harness.graduation.waivers import Waiver
from harness.tables import Tables

DEFAULT_MODEL = "GF-MH"
DEFAULT_STORE = ".groundthink"
LOG_STATES_EVERY = 10

_OVERRIDE = re.compile(r"(?P<key>[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)+)=(?P<value>.+)", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """The options of a session.

    model      as given: a registry name, ``file.py:factory``, ``package.module:factory``,
               ``mutant:NAME`` or ``control:NAME``
    corpus     as given: ``sotu``, ``markov``, a path or ``hf:REPO[/CONFIG]``; empty for the corpus of the preset
    device     ``cpu`` or ``cuda``; ``auto`` only where no suite can run (collection, the project's own tests)
    scale      nominal parameters: ``3.5M``, ``8M``, ``30M`` or ``125M``
    overrides  dotted key -> value as typed, from ``--set`` and ``--log-states``
    baseline   numbers of an earlier run, or the directory of its report, to hold this one against
    graduates  whether this is a decision on scaling up (``--graduate``); waivers that it takes into account
    """

    model: str
    checkpoint: Path | None
    corpus: str
    device: str
    scale: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, str]
    store: Path
    report: Path
    fail_on_warn: bool
    baseline: Path | None = None
    graduates: bool = False
    waivers: tuple[Waiver, ...] = ()

    @property
    def overrides_as_given(self) -> list[str]:
        """``key=value``, as presets take them."""
        return [f"{key}={value}" for key, value in self.overrides.items()]

    @property
    def scope(self) -> str:
        """``cuda`` or ``cpu_ref``: evidence gathered on a CPU says nothing about the kernels of a GPU."""
        return "cuda" if self.device == "cuda" else "cpu_ref"

    def command(self, targets: Sequence[str]) -> str:
        """The command line that measures these files or node ids again under the same options."""
        words = ["pytest", *targets, "-m", MARKERS[self.scale]]
        words += ["--model", self.model] if self.model != DEFAULT_MODEL else []
        words += ["--checkpoint", str(self.checkpoint)] if self.checkpoint else []
        words += ["--corpus", self.corpus] if self.corpus else []
        words += ["--device", self.device] if self.device != "auto" else []
        words += ["--seeds", str(len(self.seeds))] if len(self.seeds) != 1 else []
        words += ["--first-seed", str(self.seeds[0])] if self.seeds[0] else []
        for override in self.overrides_as_given:
            words += ["--set", override]
        words += ["--store", str(self.store)] if self.store != Path(DEFAULT_STORE) else []
        words += ["--fail-on-warn"] if self.fail_on_warn else []
        return shlex.join(words)


@dataclass(frozen=True)
class Subject:
    """What is under test, as the suites describe it.

    branches        names of the branches a block has; fewer than two makes the checks of hybrids NA
    parameters      total, tied embeddings counted once; None when not known without building the model
    corpus          name of the corpus; embedded_corpus: it ships with the harness and is smoke evidence only
    """

    name: str
    branches: tuple[str, ...]
    parameters: int | None = None
    corpus: str = ""
    embedded_corpus: bool = False


SETTINGS = pytest.StashKey[Settings]()
TABLES = pytest.StashKey[Tables]()
SUBJECT = pytest.StashKey[Subject | None]()
BASELINE = pytest.StashKey[Metrics]()


def scale_of(markexpr: str, markers: Collection[str]) -> str:
    """The scale a ``-m`` expression asks for; tiny when it names none.

    ``markers`` are those that are registered: a word that is none of them would select nothing, in silence. Raises
    HarnessError for such a word, and for more than one scale.
    """
    named = re.findall(r"[^\W\d]\w*", markexpr)
    unknown = [word for word in named if word not in {*markers, "and", "or", "not"}]
    if unknown:
        raise HarnessError(f"-m {markexpr!r}: no marker is called {unknown[0]!r}; {did_you_mean(unknown[0], SCALES)}")
    scales = list(dict.fromkeys(word for word in named if word in SCALES))
    allowed = ", ".join(f"{marker} ({scale})" for marker, scale in SCALES.items())
    if len(scales) > 1:
        raise HarnessError(
            f"-m {markexpr!r} names {len(scales)} scales ({', '.join(scales)}); a run measures one. "
            f"Give one of {allowed}"
        )
    if scales and re.search(rf"\bnot[\s(]*{scales[0]}\b", markexpr):
        raise HarnessError(f"-m {markexpr!r} excludes a scale, so it chooses none. Give one of {allowed}")
    return SCALES[scales[0]] if scales else SCALES["tiny"]


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """``["train.steps=2000"]`` as a mapping. Raises HarnessError for what is no ``section.key=value``."""
    overrides: dict[str, str] = {}
    for pair in pairs:
        match = _OVERRIDE.fullmatch(pair)
        if match is None:
            raise HarnessError(f"--set {pair!r} is not SECTION.KEY=VALUE; write for example --set train.steps=2000")
        if match["key"] in overrides:
            raise HarnessError(
                f"--set {match['key']} is given twice ({overrides[match['key']]}, {match['value']}); give it once"
            )
        overrides[match["key"]] = match["value"]
    return overrides


def log_states_override(every: str | None) -> list[str]:
    """``--log-states EVERY`` as what ``--set`` takes; nothing when it was not given. Raises HarnessError.

    A path is what stands there when the option comes before the paths without a number.
    """
    if every is None:
        return []
    if not every.isdecimal() or int(every) < 1:
        raise HarnessError(
            f"--log-states {every}: EVERY is a whole number of steps, at least 1; "
            f"write --log-states={LOG_STATES_EVERY}, or give --log-states after the paths"
        )
    return [f"monitors.probe_every={every}"]


def seeds_of(count: str, first: str = "0") -> tuple[int, ...]:
    """``count`` seeds from ``first`` on. Raises HarnessError unless these are whole numbers, ``count`` at least 1."""
    if not count.isdecimal() or int(count) < 1:
        raise HarnessError(f"--seeds {count}: give a whole number of at least 1")
    if not first.isdecimal():
        raise HarnessError(f"--first-seed {first}: give a whole number of at least 0")
    return tuple(range(int(first), int(first) + int(count)))


def require_writable(option: str, directory: Path) -> None:
    """Raise HarnessError unless ``directory`` can be made and a file written into it."""
    probe = directory / ".writable"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise HarnessError(
            f"{option} {directory}: cannot write there ({error.strerror}); give a directory that can be written"
        ) from error


def describe_subject(config: pytest.Config) -> Subject | None:
    """What the suites say about the subject, asked once a process; None when no suite says anything."""
    if SUBJECT not in config.stash:
        config.stash[SUBJECT] = config.hook.pytest_groundthink_describe_subject(settings=config.stash[SETTINGS])
    return config.stash[SUBJECT]
