"""``python -m harness.schema [FILE]``: writes the JSON schema of report.json, for programs that read reports.

It describes what is written: every field is there, and a number that is not finite is one of three strings.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from harness.report import Report

SCHEMA_FILE = Path(__file__).parents[1] / "docs" / "report.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _AsWritten(GenerateJsonSchema):
    """A field that has a default is written all the same."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Every field is."""
        return True


def report_schema() -> dict[str, Any]:
    """The schema of ``Report`` as it is serialised (JSON Schema, draft 2020-12)."""
    return {"$schema": DIALECT, **Report.model_json_schema(mode="serialization", schema_generator=_AsWritten)}


def schema_text() -> str:
    """The schema as the file holds it."""
    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.schema", description="write the JSON schema of report.json"
    )
    parser.add_argument(
        "file", type=Path, nargs="?", default=SCHEMA_FILE, metavar="FILE", help=f"default {SCHEMA_FILE.name} in docs/"
    )
    file = parser.parse_args(arguments).file
    file.write_text(schema_text(), encoding="utf-8")
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
