// How our kernels are launched, and the few things that a CPU emulation of them must replace.
//
// Compiled with GROUNDTHINK_EMULATED, a kernel runs on the CPU, thread by thread (tests/kernels/cuda_emulator): so
// that a machine without a GPU can hold the very source against its oracle.
#pragma once

#ifdef GROUNDTHINK_EMULATED
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// The dynamic shared memory of a block, as a `Type*`.
#define DYNAMIC_SHARED(Type, name)                             \
  extern __shared__ __align__(16) unsigned char raw_shared[]; \
  Type* const name = reinterpret_cast<Type*>(raw_shared)

// Launch `kernel` (in parentheses if its name has a comma); errors are in cudaGetLastError().
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#endif
