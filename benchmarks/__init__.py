from harness.openmp import settle_waiting

# before a benchmark imports torch
settle_waiting()
