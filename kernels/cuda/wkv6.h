// wkv6 on a GPU: the launchers, free of ATen. Equations: kernels/api.py; the algorithm: wkv6.cu.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "dtype.h"

namespace groundthink {

// Sizes of one call. All tensors are contiguous: r, k, v, y [B,T,H,D] in `values`, log_w [B,T,H,D] in `decay` (fp32 or
// the same as `values`), u [H,D] fp32, states [B,H,D,D] (key, value) fp32.
struct Wkv6Shape {
  int B, T, H, D;  // D, the head size, is 32 or 64
  Dtype values, decay;
};

// Positions between two checkpoints of the state.
constexpr int kWkv6Chunk = 16;

// What a call needs beside its inputs and outputs, in bytes. The forward pass leaves `checkpoints` and `scores` for the
// backward pass. It is a function of the shape and the GPU alone.
struct Wkv6Sizes {
  std::size_t checkpoints, scores, forward_workspace, backward_workspace;
};
Wkv6Sizes wkv6_sizes(const Wkv6Shape& shape, int multiprocessors);

// Runs on `stream`, without a synchronisation. `checkpoints` and `scores` may both be null: then nothing is left for a
// backward pass.
cudaError_t wkv6_forward(const Wkv6Shape& shape, int multiprocessors, const void* r, const void* k, const void* v,
                         const void* log_w, const float* u, const float* initial, void* y, float* final,
                         void* checkpoints, float* scores, void* workspace, cudaStream_t stream);

// Gradients in the dtypes of their inputs; du [H,D] and dinitial [B,H,D,D] in fp32.
cudaError_t wkv6_backward(const Wkv6Shape& shape, int multiprocessors, const void* r, const void* k, const void* v,
                          const void* log_w, const float* u, const void* checkpoints, const float* scores,
                          const void* dy, const float* dfinal, void* dr, void* dk, void* dv, void* dlog_w, float* du,
                          float* dinitial, void* workspace, cudaStream_t stream);

}  // namespace groundthink
