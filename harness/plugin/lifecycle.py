"""The life of one check: prerequisites, known answers, the test itself, and its outcome in pytest's words.

FAIL is a failure, INVALID and MISSING are errors, UNSUPPORTED and NA are skips, WARN is a pass that shows as a warning.
The outcome follows from the records alone; a test that judged nothing is MISSING.
"""

from collections.abc import Generator
from contextlib import ExitStack

import pytest

from harness.errors import HarnessError
from harness.graduation.ledger import seal
from harness.known_answers import run_known_answers
from harness.plugin.collection import DEMAND, ITEMS_BY_CHECK, Demand
from harness.plugin.judge import EVIDENCE, SEAL, Evidence, NonVerdictError
from harness.plugin.judge import judge as judge  # a fixture of this plugin
from harness.plugin.message import verdict_message
from harness.plugin.options import BOARD, is_worker
from harness.plugin.settings import SETTINGS, TABLES, describe_subject
from harness.records import BLOCKING, Status, worst

QUIET = pytest.StashKey[ExitStack]()
GPU_PEAK = "groundthink.gpu_peak_bytes"
"""Property of an item in junit.xml: the most that its process had allocated on the GPU while it ran, or since the last
training in it began, which counts its own peak (``harness.team``)."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Open the evidence of a check before its setup; publish its status when all is over."""
    if DEMAND not in item.stash:
        return (yield)
    config = item.config
    check = item.stash[DEMAND].check
    item.stash[EVIDENCE] = evidence = Evidence(item, check, config.stash[SETTINGS], config.stash[TABLES].thresholds)
    with ExitStack() as quiet:
        item.stash[QUIET] = quiet
        if not check.alone and is_worker(config):
            quiet.enter_context(config.stash[BOARD].beside_others())
        _forget_gpu_peak()
        result = yield
    config.stash[BOARD].finish(item.nodeid, evidence.status)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to measure on sand: a failed prerequisite, a broken metric, or a claim that does not apply."""
    if EVIDENCE not in item.stash:
        return
    evidence, demand = item.stash[EVIDENCE], item.stash[DEMAND]
    _require_prerequisites(evidence, demand)
    _require_applicable(evidence)
    if demand.check.alone and is_worker(item.config):
        # not before: a prerequisite that another process runs could wait for this one
        item.stash[QUIET].enter_context(item.config.stash[BOARD].alone())
    # whatever a known-answer test raises, the metric behind it cannot be trusted
    known = pytest.CallInfo.from_call(lambda: run_known_answers(demand.check), when="setup", reraise=KeyboardInterrupt)
    if known.excinfo is not None:
        error = known.excinfo.value
        text = str(error) if isinstance(error, HarnessError) else f"known-answer tests: {known.excinfo.exconly()}"
        evidence.kat = "failed"
        _end(evidence, Status.INVALID, text)
    evidence.kat = known.result


def _require_prerequisites(evidence: Evidence, demand: Demand) -> None:
    config = evidence.item.config
    absent = []
    for need in demand.needs:
        nodeids = config.stash[ITEMS_BY_CHECK].get(need, [])
        if not nodeids:
            absent.append(need)
            continue
        statuses = config.stash[BOARD].wait_for(nodeids)
        if None in statuses:
            reason = f"needs {need}, which has not finished; checks wait for each other under --dist load alone"
            _end(evidence, Status.MISSING, reason)
        ended = worst(status for status in statuses if status is not None)
        if ended in BLOCKING:
            _end(evidence, Status.MISSING, f"needs {need}, which ended {ended}")
    if absent:
        evidence.remark = f"prerequisite {', '.join(absent)} not run here"


def _require_applicable(evidence: Evidence) -> None:
    if evidence.check.branches != "hybrid":
        return
    subject = describe_subject(evidence.item.config)
    if subject is not None and len(subject.branches) < 2:
        branches = ", ".join(subject.branches) or "no branch"
        _end(evidence, Status.NA, f"compares two branches; {subject.name} has {branches}")


def _end(evidence: Evidence, status: Status, reason: str) -> None:
    evidence.add("", status, reason)
    raise NonVerdictError(reason)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn what happened into records, and the records into pytest's outcome."""
    evidence = item.stash.get(EVIDENCE, None)
    if evidence is None:
        return (yield)
    unexpected = _absorb(evidence, call)
    if call.when == "call" and call.excinfo is None and not any(not record.info for record in evidence.records):
        evidence.add("", Status.MISSING, "the test ended without judging anything")
    if call.when == "teardown":
        text = seal(item.nodeid, evidence.check.id, evidence.records).model_dump_json()
        item.user_properties.append((SEAL, text))
        peak = _gpu_peak()
        if peak is not None:
            item.user_properties.append((GPU_PEAK, str(peak)))
    report = yield
    if call.when == "call" or call.excinfo is not None:
        _translate(report, evidence, unexpected)
    return report


def _forget_gpu_peak() -> None:
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def _gpu_peak() -> int | None:
    """Bytes; None where this process has not used a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def _absorb(evidence: Evidence, call: pytest.CallInfo[None]) -> bool:
    """Record an exception that is not ours to have raised. True when a traceback helps the reader."""
    if call.excinfo is None or isinstance(call.excinfo.value, NonVerdictError):
        return False
    error = call.excinfo.value
    if isinstance(error, pytest.skip.Exception):
        evidence.add("", Status.MISSING, f"skipped: {error.msg}")
        return False
    if isinstance(error, HarnessError):
        evidence.add("", Status.INVALID, str(error))
        return False
    # in the body of a check it is the subject that was running; in a fixture it may be anything
    status = Status.FAIL if call.when == "call" else Status.INVALID
    evidence.add("exception", status, f"{call.when}: {call.excinfo.exconly()}")
    return True


def _translate(report: pytest.TestReport, evidence: Evidence, unexpected: bool) -> None:
    status = evidence.status
    vars(report)["groundthink_status"] = status.value  # travels through xdist with the report
    message = verdict_message(evidence)
    match status:
        case Status.UNSUPPORTED | Status.NA:
            path, line, _ = evidence.item.location
            report.outcome = "skipped"
            report.longrepr = (path, line or 0, message)
        case Status.PASS:
            report.outcome, report.longrepr = "passed", None
        case Status.WARN if not evidence.settings.fail_on_warn:
            report.outcome, report.longrepr = "passed", None
        case _:
            report.outcome = "failed"
            report.longrepr = f"{message}\n\n{report.longrepr}" if unexpected else message
    if status in (Status.INVALID, Status.MISSING) and report.when == "call":
        # pytest and JUnit call a problem of the call phase a failure, one of any other phase an error
        report.when = "setup"


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Show WARN as its own outcome."""
    if report.when == "call" and report.passed and getattr(report, "groundthink_status", "") == Status.WARN:
        return "warned", "W", ("WARN", {"yellow": True})
    return None
