"""Rows at once: the same on a CPU, many on a GPU."""

import torch

from harness.batching import GPU_TOKENS, rows_at_once


def test_a_gpu_is_given_as_many_rows_as_tokens_allow():
    assert rows_at_once(16, 256, "cpu") == rows_at_once(16, 8, torch.device("cpu")) == 16
    assert rows_at_once(16, 256, "cuda") == GPU_TOKENS // 256 == 64
    assert rows_at_once(16, 16, torch.device("cuda", 1)) == 1024
    # never fewer than a CPU is given
    assert rows_at_once(8, GPU_TOKENS, "cuda") == 8
