"""The controller's side: gathers records from every process, misses what did not come, decides, reports."""

import os
import shlex
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from harness.graduation.ledger import Seal
from harness.items import ItemSet
from harness.plugin.board import Board, group_by_check
from harness.plugin.judge import RECORD, SEAL
from harness.plugin.pace import Pace
from harness.plugin.planning import plan_of
from harness.plugin.settings import BASELINE, SETTINGS, TABLES, describe_subject
from harness.records import Record, Status
from harness.report import Report, RunFacts


class Controller:
    """One per session, in the process that the user started. Never part of an xdist worker."""

    def __init__(self, config: pytest.Config, board: Board):
        self.config = config
        self.board = board
        self.records: list[Record] = []
        self.seals: list[Seal] = []
        self.finished: set[str] = set()
        self.crashed: set[str] = set()
        self.plain_failures = 0
        self.report: Report | None = None
        self._began = time.perf_counter()
        self._pace: Pace | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Begin to show how the session gets on. Under xdist nothing is collected here: see the next hook."""
        if not self.config.option.collectonly and self.board.planned():
            self._show_pace()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        """The first worker knows what will run."""
        if self._pace is None and self.board.planned():
            self._show_pace()

    def _show_pace(self) -> None:
        plan = plan_of(self.config) if self.config.stash[SETTINGS].graduates else None
        planned = len(self.board.planned())
        self._pace = Pace(self.board.directory, lambda: (len(self.finished), planned), plan)
        self._pace.start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records of an item once: the report of its teardown carries all of them."""
        if report.failed and report.nodeid not in self.board.planned():
            self.plain_failures += 1
        if report.when != "teardown":
            return
        texts = [text for name, text in report.user_properties if name == RECORD]
        if texts:
            self.finished.add(report.nodeid)
            self.records += [Record.model_validate_json(str(text)) for text in texts]
            seals = (text for name, text in report.user_properties if name == SEAL)
            self.seals += [Seal.model_validate_json(str(text)) for text in seals]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that could not be collected: with --continue-on-collection-errors nothing else would."""
        self.plain_failures += report.failed

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object | None) -> None:
        """A worker died. Nothing may wait for what it held: until it is rerun elsewhere, it is MISSING."""
        if error is None:
            return
        for nodeid in self.board.planned():
            if self.board.status(nodeid) is None:
                self.board.finish(nodeid, Status.MISSING)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        """The item that a dead worker was running. xdist does not run it again."""
        self.crashed.add(crashitem)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Decide, write the report and set the exit code; pytest's own 2 to 5 stay."""
        self.board.close()
        if self._pace is not None:
            self._pace.stop()
        planned = self.board.planned()
        if not planned:
            return
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        unreported = [nodeid for nodeid in planned if nodeid not in self.finished]
        for nodeid in unreported:
            self._miss(nodeid, planned[nodeid], announce=ended and not session.shouldfail)
        self.report = self._write(planned, exitstatus if not ended else None)
        if ended:
            session.exitstatus = self.report.exit_code or exitstatus

    def _miss(self, nodeid: str, check_id: str, announce: bool) -> None:
        """Record an item that never reported, and tell everything that listens to reports, JUnit among them."""
        died = nodeid in self.crashed
        reason = "its worker process died" if died else "planned, and never reported"
        settings = self.config.stash[SETTINGS]
        self.records.append(
            Record(
                check=check_id,
                metric="",
                status=Status.MISSING,
                nodeid=nodeid,
                note=reason,
                model=settings.model,
                scale=settings.scale,
                device=settings.device,
            )
        )
        # the report of a crash has already reached them
        if announce and not died:
            location = (nodeid.partition("::")[0], None, nodeid)
            message = f"{check_id} MISSING: {reason}"
            lost = pytest.TestReport(nodeid, location, {}, "failed", message, "setup")
            self.config.hook.pytest_runtest_logreport(report=lost)

    def _write(self, planned: dict[str, str], interrupted: int | None) -> Report:
        from harness.provenance import collect
        from harness.render import write_report

        settings, tables = self.config.stash[SETTINGS], self.config.stash[TABLES]
        subject = describe_subject(self.config)
        arguments = [str(argument) for argument in self.config.invocation_params.args]
        facts = RunFacts(
            model=settings.model,
            parameters=subject.parameters if subject else None,
            corpus=subject.corpus if subject else settings.corpus,
            embedded_corpus=subject.embedded_corpus if subject else False,
            device=settings.device,
            scope=settings.scope,
            scale=settings.scale,
            seeds=settings.seeds,
            graduates=settings.graduates,
            seals=self.seals,
            branches=subject.branches if subject else (),
            overrides=settings.overrides,
            waivers=settings.waivers,
            command=shlex.join(["pytest", *arguments]),
            records=self.records,
            planned=planned,
            rerun={
                check_id: settings.command(list(dict.fromkeys(nodeid.partition("::")[0] for nodeid in nodeids)))
                for check_id, nodeids in group_by_check(planned).items()
            },
            fail_on_warn=settings.fail_on_warn,
            other_failures=self.plain_failures,
            interrupted=interrupted,
            runs=self.board.runs(),
            figures=self.board.figures(),
            items=[ItemSet.model_validate(items) for items in self.board.items()],
            baseline=self.config.stash.get(BASELINE, None),
            baseline_name=str(settings.baseline or ""),
            provenance={
                **collect(settings.device),
                "seeds": list(settings.seeds),
                **tables.hashes,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "wall_s": time.perf_counter() - self._began,
            },
        )
        return write_report(facts, tables, settings.report)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The summary of the run, worst check first."""
        if self.report is None:
            return
        from harness.github import tell
        from harness.plugin.terminal import write_summary

        tables, directory = self.config.stash[TABLES], self.config.stash[SETTINGS].report
        write_summary(terminalreporter, self.report, tables.checks, directory)
        for line in tell(os.environ, self.report, tables, directory, self.config.rootpath):
            terminalreporter.write_line(line)
