"""Where the numbers of an earlier run are read from."""

from pathlib import Path

from pydantic import ValidationError

from harness.comparison import SCHEMA_VERSION, Metrics
from harness.errors import HarnessError
from harness.report import METRICS_FILE, REPORT_FILE, Report
from harness.thresholds import explain_validation


def load_baseline(path: Path) -> Metrics:
    """The numbers in a file, or of a report's directory; one that an older version wrote gives them from its records.

    Raises HarnessError when there is none, or it is something else.
    """
    file = path
    if path.is_dir():
        file = path / METRICS_FILE if (path / METRICS_FILE).exists() else path / REPORT_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(
            f"--baseline {path}: cannot read {file} ({error}); give {METRICS_FILE} of an earlier run, or the directory "
            "that its --report wrote"
        ) from error
    try:
        from_report = file.name == REPORT_FILE
        return Report.model_validate_json(text).metrics if from_report else Metrics.model_validate_json(text)
    except ValidationError as error:
        raise HarnessError(
            f"--baseline {path}: {file.name} does not hold the numbers of a run (schema {SCHEMA_VERSION}):\n"
            f"{explain_validation(error)}"
        ) from error
