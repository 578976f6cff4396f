// Found in place of PyTorch's own header where the binding is compiled for the emulator: one GPU, which is the CPU.
#pragma once
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, "cuda_emulator: a launcher reports an error")

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};
inline int device_count() { return 1; }
inline int current_device() { return 0; }
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
