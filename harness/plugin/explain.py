"""``pytest --explain ID``: what a check measures and what to do about it, as plain text."""

import textwrap

from harness.checks import MARKERS, Check, Checks
from harness.tables import Tables
from harness.wording import format_band

WIDTH = 100


def explain(name: str, tables: Tables) -> str:
    """The text for one check. Raises CheckError with near matches for an unknown id."""
    check = tables.checks.find(name)
    lines = [f"{check.id}  {check.title}", ""]
    for label, text in (
        ("claim", check.claim),
        ("why", check.why),
        ("method", check.method),
        ("needs", _needs(check, tables.checks)),
        ("applies to", "hybrids (NA for a model with one branch)" if check.branches == "hybrid" else "every model"),
        ("runs at", ", ".join(f"{scale} (-m {MARKERS[scale]})" for scale in check.scales)),
        ("demanded at", ", ".join(tables.evidence.demanded_at(check.id)) or "no scale: it informs"),
        ("hard gate", _gates(check, tables)),
        ("must catch", ", ".join(f"mutant:{name}" for name in check.mutants) or "no mutant yet"),
        ("known answers", ", ".join(check.known_answers) or "none yet"),
        ("source", check.source),
        ("if it fails", check.next),
        ("run", f"pytest {check.path} -m {MARKERS[check.scales[0]]}"),
    ):
        lines += _paragraph(label, text)
    return "\n".join([*lines, "", *_limits(check, tables), ""])


def _needs(check: Check, checks: Checks) -> str:
    if not check.needs:
        return "nothing"
    return ", ".join(f"{need} ({checks[need].title})" for need in check.needs) + "; not run when one of them failed"


def _gates(check: Check, tables: Tables) -> str:
    gates = dict.fromkeys(gate.id for scale in check.scales for gate in tables.evidence.gates_of(check.id, scale))
    return f"{', '.join(gates)}: a FAIL is NO-GO, a WARN caps the verdict at CAUTION" if gates else "no"


def _limits(check: Check, tables: Tables) -> list[str]:
    metrics = tables.thresholds.of(check.id)
    if not metrics:
        return ["limits: none; every claim of this check is exact"]
    lines = [f"limits ({tables.thresholds.path.name})"]
    for name, limits in metrics.items():
        unit = "" if limits.unit == "1" else f" {limits.unit}"
        lines.append(
            f"  {name}: pass {format_band(limits.pass_band)}{unit}, warn {format_band(limits.warn_band)}{unit}"
        )
        lines += [
            f"      at {scale}: pass {format_band(bands.pass_band)}, warn {format_band(bands.warn_band)}"
            for scale, bands in limits.per_scale.items()
        ]
        lines.append(f"      {'calibrated' if limits.calibrated else 'uncalibrated'}; source: {limits.source}")
        lines += textwrap.wrap(limits.note, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label:<14}{text}", WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)
