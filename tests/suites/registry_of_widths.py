"""A plugin of the scaling check's tests: ``-p registry_of_widths`` makes every size one layer, wider from rung to rung.

At a vocabulary of 512 the sizes of the registry are hardly sizes any more: their embeddings are gone, and what is left
is a shallow model and a deep one of as many parameters.
"""

import dataclasses

from models import registry

WIDTHS = {"1.2M": 32, "1.6M": 64, "2.1M": 96, "2.7M": 160, "3.5M": 256}

for shapes in (*registry._SHAPES.values(), *registry._RUNG_SHAPES.values()):
    for scale in shapes.keys() & WIDTHS:
        shapes[scale] = dataclasses.replace(shapes[scale], d_model=WIDTHS[scale], num_layers=1, d_ff=2 * WIDTHS[scale])
