"""mamba-ssm and causal-conv1d as backends: what of them is installed, and our operations around their kernels.

``python -m kernels.packages`` prints the inventory. Importing this package imports neither torch nor the packages.
"""

from kernels.packages.installed import Installed, inventory

__all__ = ["Installed", "inventory"]
