"""Kernels of ours for NVIDIA GPUs, in CUDA C++."""
