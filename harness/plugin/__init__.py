"""The pytest plugin: options, evidence, prerequisites, completeness and the report of the suites.

Loaded by the root ``conftest.py``. It imports neither torch nor scipy nor rich before a suite item runs, and it leaves
tests that carry no ``check`` marker alone.
"""

from harness.openmp import settle_waiting

# before anything can import torch
settle_waiting()

pytest_plugins = [
    "harness.plugin.options",
    "harness.plugin.collection",
    "harness.plugin.lifecycle",
    "harness.plugin.runs",
]
