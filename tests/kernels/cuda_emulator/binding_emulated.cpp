// The binding with all kernels, for the emulator: the operations of CUDA on tensors of the CPU.
#include "cross_entropy.cu"
#include "wkv6.cu"

// Before the name below means something else.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#define CUDA CPU
#include "binding.cpp"
