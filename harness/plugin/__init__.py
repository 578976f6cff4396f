"""The pytest plugin: options, evidence, prerequisites, completeness and the report of the suites.

Loaded by the root ``conftest.py``. It imports neither torch nor scipy nor rich before a suite item runs, and it leaves
tests that carry no ``check`` marker alone.
"""

import os

# A thread that waits for work must not spin: on few cores it starves the others. OpenMP reads this once, when torch
# loads it, so it is set before anything can import torch; a value set by the user stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest_plugins = [
    "harness.plugin.options",
    "harness.plugin.collection",
    "harness.plugin.lifecycle",
    "harness.plugin.runs",
]
