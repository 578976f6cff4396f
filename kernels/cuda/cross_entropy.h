// Mean cross entropy on a GPU: the launchers, free of ATen. Equations: kernels/api.py.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace groundthink {

// Numbers that the forward pass leaves for the backward pass, for each row.
constexpr int kCrossEntropyStats = 3;

// Runs on `stream`, without a synchronisation. `logits` [rows,classes] in `values`, contiguous, from an address that is a
// multiple of 16; stats [rows,3], losses [rows] and loss [1] in fp32. A target that is no class fails an assertion on
// the GPU.
cudaError_t cross_entropy_forward(Dtype values, int rows, int classes, const void* logits, const int64_t* targets,
                                  float* stats, float* losses, float* loss, cudaStream_t stream);

// dlogits [rows,classes] in `values`, from an address that is a multiple of 16; dloss [1] in fp32.
cudaError_t cross_entropy_backward(Dtype values, int rows, int classes, const void* logits, const int64_t* targets,
                                   const float* stats, const float* dloss, void* dlogits, cudaStream_t stream);

}  // namespace groundthink
