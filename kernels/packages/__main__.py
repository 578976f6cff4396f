"""Print what of mamba-ssm and causal-conv1d is installed here."""

import sys

from kernels.packages.installed import FIELDS, inventory


def main() -> None:
    """Write one line a part: its name, its version, whether it is real, what it runs, and where it lies."""
    rows = [FIELDS, *(tuple(str(value or "-") for value in row.as_dict().values()) for row in inventory())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


if __name__ == "__main__":
    main()
