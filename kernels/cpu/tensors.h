// Tensors to pointers: one dtype for a whole call, fp32 or fp64, and contiguous memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace groundthink {

// Calls run(T()) with the C++ type of `tensor`.
template <typename Run>
inline void dispatch(const at::Tensor& tensor, Run run) {
  if (tensor.scalar_type() == at::kFloat) {
    run(float());
  } else {
    TORCH_CHECK_VALUE(tensor.scalar_type() == at::kDouble, "the C++ kernels compute in float32 or float64, not in ",
                      tensor.scalar_type());
    run(double());
  }
}

// A contiguous input, kept alive while its memory is in use.
struct Input {
  explicit Input(const at::Tensor& given) : tensor(given.contiguous()) {}
  template <typename T>
  const T* data() const { return tensor.const_data_ptr<T>(); }
  at::Tensor tensor;
};

}  // namespace groundthink
