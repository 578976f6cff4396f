"""Made-up records, and the facts of the run that left them: what tests of reports start from."""

from harness.graduation.ledger import seal
from harness.records import Limits, Record
from harness.report import RunFacts
from harness.thresholds import judge_value

TABLE = """
[A1.ratio]
unit = "1"
direction = "band"
pass = [0.3, 3.0]
warn = [0.1, 10.0]
source = "a source"
calibrated = false
"""


def measured(value, ci=None, **fields):
    limits = Limits(pass_band=(0.3, 3.0), warn_band=(0.1, 10.0), source="a source", calibrated=False)
    base = {
        "check": "A1",
        "metric": "ratio",
        "nodeid": "a",
        "scale": "3.5M",
        "model": "GF-MH",
        "unit": "1",
        "seeds": (0,),
    }
    status = judge_value(limits, value, ci)
    return Record(**{**base, "status": status, "value": value, "ci": ci, "threshold": limits, **fields})


def claim(status, check="B1", nodeid="b", **fields):
    base = {"check": check, "metric": "claim", "status": status, "nodeid": nodeid, "scale": "3.5M", "model": "GF-MH"}
    return Record(**{**base, **fields})


def facts(*records, **changes):
    base = {
        "model": "GF-MH",
        "parameters": 3_500_000,
        "corpus": "sotu",
        "embedded_corpus": False,
        "device": "cuda",
        "scope": "cuda",
        "scale": "3.5M",
        "seeds": (0, 1, 2),
        "command": "pytest suites",
        "records": records,
        "planned": {record.nodeid: record.check for record in records},
        "seals": [
            seal(nodeid, check, [record for record in records if record.nodeid == nodeid])
            for nodeid, check in {record.nodeid: record.check for record in records}.items()
        ],
        "rerun": {"A1": "pytest a", "B1": "pytest b"},
        "provenance": {"git": {"sha": "0" * 40, "dirty": False}, "wall_s": 1.5, "cpu": "a|b <cpu>"},
    }
    return RunFacts(**{**base, **changes})
