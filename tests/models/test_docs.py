"""The size table of docs/models.md is what the registry builds."""

import re
from pathlib import Path

import torch

from models import SCALES, get_model, list_models

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def size_table() -> str:
    """Names that share every size and parameter count share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for scale in SCALES:
        for name in list_models():
            if name == "8M":
                continue
            with torch.device("meta"):
                model = get_model(name, scale)
            config = model.config
            total = sum(parameter.numel() for parameter in model.parameters())
            ranks = f"{config.rwkv.mix_rank} / {config.rwkv.decay_rank}" if config.rwkv else ""
            cells = (scale, str(config.d_model), str(config.num_layers), str(config.d_ff), ranks, f"{total:,}")
            rows.setdefault((*cells, f"{100 * (total / SCALES[scale] - 1):+.2f} %"), []).append(name)
    lines = ["| scale | d | layers | feed-forward | ranks | parameters | off nominal | names |", "|" + "---|" * 8]
    lines += [f"| {' | '.join(cells)} | {', '.join(names)} |" for cells, names in rows.items()]
    return "\n".join(lines)


def test_the_size_table_is_up_to_date():
    [table] = re.findall(r"<!-- sizes -->\n(.*)\n<!-- /sizes -->", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert table == size_table(), f"replace the table of {PAGE.name} by\n{size_table()}"
