"""The three tables that decide what is checked and what follows: checks, limits, evidence."""

from dataclasses import dataclass
from pathlib import Path

from harness.checks import CHECKS_PATH, MARKERS, Checks, load_checks
from harness.errors import did_you_mean
from harness.graduation.evidence import EVIDENCE_PATH, EvidenceTable, load_evidence
from harness.thresholds import THRESHOLDS_PATH, ThresholdError, Thresholds, load_thresholds

TABLE_FILES = ("checks.toml", "thresholds.toml", "evidence.toml")


@dataclass(frozen=True)
class Tables:
    """The tables in force."""

    checks: Checks
    thresholds: Thresholds
    evidence: EvidenceTable

    @property
    def files(self) -> dict[Path, str]:
        """The file of each table, and its name beside a report."""
        paths = (self.checks.path, self.thresholds.path, self.evidence.path)
        return dict(zip(paths, TABLE_FILES, strict=True))

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each table, as a report's provenance names them."""
        return {
            "checks_sha256": self.checks.sha256,
            "thresholds_sha256": self.thresholds.sha256,
            "evidence_sha256": self.evidence.sha256,
        }


@dataclass(frozen=True)
class TablePaths:
    """Where the tables are: those of the harness, small ones in the plugin's own tests, those beside a report."""

    checks: Path = CHECKS_PATH
    thresholds: Path = THRESHOLDS_PATH
    evidence: Path = EVIDENCE_PATH

    @classmethod
    def beside(cls, report: Path) -> "TablePaths":
        """The tables that were in force when the report in a directory was made."""
        return cls(*(report / name for name in TABLE_FILES))


def load_tables(paths: TablePaths | None = None) -> Tables:
    """Read the tables and hold them against each other. Raises CheckError, ThresholdError or EvidenceError."""
    paths = paths or TablePaths()
    checks, thresholds = load_checks(paths.checks), load_thresholds(paths.thresholds)
    for check_id, metrics in thresholds.checks.items():
        if check_id not in checks:
            raise ThresholdError(f"{paths.thresholds}: [{check_id}] is no check; {did_you_mean(check_id, checks)}")
        for name, limits in metrics.items():
            for scale in limits.per_scale:
                if scale not in MARKERS:
                    where = f"[{check_id}.{name}.per_scale]"
                    raise ThresholdError(
                        f"{paths.thresholds}: {where} {scale!r} is no scale; {did_you_mean(scale, MARKERS)}"
                    )
    return Tables(checks, thresholds, load_evidence(checks, thresholds, paths.evidence))
