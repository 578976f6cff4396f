"""One row a check, worst first: of a suite run those that ran, of a graduation also what was demanded and did not."""

from dataclasses import dataclass

from harness.records import SEVERITY, Status
from harness.report import CheckResult, Report
from harness.tables import Tables


@dataclass(frozen=True)
class CheckRow:
    """How a check stands in the decision.

    status    in a graduation that of the audited records, which may be worse than what the check reported
    why       why it is no better, where the audit says so
    waived    a FAIL that counts as WARN
    demanded  by the scale that is graduated; in a suite run nothing is
    ran       the check as it ended, if it ran
    """

    id: str
    title: str
    status: Status
    why: str
    waived: bool
    demanded: bool
    ran: CheckResult | None

    @property
    def again(self) -> str:
        """The command that measures it again; empty where nothing measures it."""
        return self.ran.rerun if self.ran else ""

    @property
    def remark(self) -> str:
        """What its worst record does not tell: that it did not run, that the audit found otherwise, or a waiver."""
        told = self.ran is not None and self.ran.worst is not None and self.ran.status is self.status
        return "" if told and not self.waived else self.why


def check_rows(report: Report, tables: Tables) -> list[CheckRow]:
    """The rows of a report, worst first and otherwise in the order of its checks."""
    results = {result.id: result for result in report.checks}
    settled = {each.check: each for each in report.settled}
    rows = [
        CheckRow(
            id=name,
            title=_title(name, tables),
            status=settled[name].status if name in settled else results[name].status,
            why=settled[name].why if name in settled else "",
            waived=name in settled and settled[name].waived,
            demanded=name in settled,
            ran=results.get(name),
        )
        for name in [*results, *(name for name in settled if name not in results)]
    ]
    return sorted(rows, key=lambda row: SEVERITY.index(row.status))


def _title(name: str, tables: Tables) -> str:
    return tables.checks[name].title if name in tables.checks else tables.evidence.pending[name].title
