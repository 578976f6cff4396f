"""What a check says when it does not pass: measured, allowed, run, next; one fact a line and no traceback."""

from harness.plugin.judge import Evidence
from harness.records import SEVERITY, Record, Status
from harness.wording import format_band, format_measurement, label

MAX_RECORDS = 5


def verdict_message(evidence: Evidence) -> str:
    """The message of an item: its status and the records that decided it, worst first."""
    check, status = evidence.check, evidence.status
    lines = [f"{check.id} {status}: {check.title}"]
    deciding = [record for record in evidence.records if record.status == status and not record.info]
    for record in deciding[:MAX_RECORDS]:
        lines += _facts(record, evidence.thresholds.path.name)
    if len(deciding) > MAX_RECORDS:
        lines.append(f"  more       {len(deciding) - MAX_RECORDS} further records ended {status}; the report has them")
    if SEVERITY.index(status) <= SEVERITY.index(Status.WARN):
        lines.append(f"  run        {_run(evidence, deciding)}")
        lines.append(f"  next       {check.next}")
    return "\n".join(lines)


def _facts(record: Record, table: str) -> list[str]:
    lines = []
    if record.value is not None:
        lines.append(f"  measured   {label(record)} = {format_measurement(record)}")
    elif record.metric:
        lines.append(f"  claim      {label(record)}")
    if record.threshold is not None:
        limits = record.threshold
        calibration = "" if limits.calibrated else "; uncalibrated"
        lines.append(
            f"  allowed    pass {format_band(limits.pass_band)}, warn {format_band(limits.warn_band)}"
            f"   ({table} [{record.check}.{record.metric}], {limits.source}{calibration})"
        )
    if record.note:
        lines.append("  because    " + record.note.replace("\n", "\n             "))
    return lines


def _run(evidence: Evidence, deciding: list[Record]) -> str:
    settings = evidence.settings
    seeds = deciding[0].seeds if deciding and deciding[0].seeds else settings.seeds
    parts = [f"{settings.model} {settings.scale}", f"seed {', '.join(str(seed) for seed in seeds)}"]
    provenance = evidence.provenance
    parts += [f"step {provenance.step}"] if provenance.step is not None else []
    parts += [part for part in (provenance.dtype, settings.device, provenance.backend) if part]
    return " | ".join(parts)
