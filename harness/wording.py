"""Numbers, intervals and limits in words: the same everywhere, from the terminal to the pages."""

import math
from collections.abc import Sequence

from harness.records import Record
from harness.thresholds import Band, margin


def format_number(value: float | None) -> str:
    """Four significant digits at most: ``0.05``, ``7.184``, ``1e-05``, ``inf``."""
    return "" if value is None else f"{value:.4g}"


def format_band(band: Band) -> str:
    """A closed interval in words: ``0.3 .. 3``, ``>= 0.9``, ``<= 10``, ``any``."""
    low, high = band
    if math.isinf(low) and math.isinf(high):
        return "any"
    if math.isinf(high):
        return f">= {format_number(low)}"
    if math.isinf(low):
        return f"<= {format_number(high)}"
    return f"{format_number(low)} .. {format_number(high)}"


def format_measurement(record: Record) -> str:
    """Value, unit, interval and what noise would give: ``0.05 [0.03, 0.08], null 0.01``."""
    null = f", null {format_number(record.null_value)}" if record.null_value is not None else ""
    return format_value(record.value, record.unit, record.ci) + null


def format_value(value: float | None, unit: str, ci: tuple[float, float] | None) -> str:
    """A value with its unit and interval: ``0.05 nat [0.03, 0.08]``."""
    unit_text = f" {unit}" if unit not in ("", "1") else ""
    interval = f" [{format_number(ci[0])}, {format_number(ci[1])}]" if ci else ""
    return f"{format_number(value)}{unit_text}{interval}"


def format_margin(record: Record) -> str:
    """Signed distance to the pass band: ``+0.07`` inside it, ``-0.25`` outside; empty where there is none."""
    if record.threshold is None or record.value is None:
        return ""
    return f"{margin(record.threshold, record.value, record.ci, record.direction):+.3g}"


def label(record: Record) -> str:
    """What was measured where: ``gradient_ratio[layer 3, rwkv]``."""
    where = place(record.case, record.layer, record.branch, record.seeds)
    return f"{record.metric}[{where}]" if where else record.metric


def place(case: str, layer: int | None, branch: str | None, seeds: Sequence[int]) -> str:
    """Where a number was measured: ``layer 3, rwkv, seed 0``; what the case says already is not said again."""
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else ""
    parts = (case, f"layer {layer}" if layer is not None else "", branch or "", seed)
    return ", ".join(dict.fromkeys(part for part in parts if part))


def format_duration(seconds: float) -> str:
    """A time in words: ``45 s``, ``18 min``, ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def markdown_cell(text: object) -> str:
    """Text inside one cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
