// Depthwise causal convolution on the CPU, before its activation (ATen's SiLU is vectorised already). A task is a batch
// row and a block of channels; channels are the lanes, as they are contiguous in [B, T, C].
#include <ATen/Parallel.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace groundthink {
namespace {

constexpr int64_t kBlock = 64;  // channels of a task

template <typename T>
struct ConvInputs {
  int64_t batch, length, channels, width;
  const T *x, *weight, *bias, *initial;

  int64_t blocks() const { return (channels + kBlock - 1) / kBlock; }
  // The channels of one task, copied to rows of kBlock: inputs from position -(width - 1) on, and the weights by tap.
  void read(int64_t b, int64_t c0, int64_t count, std::vector<T>& inputs, std::vector<T>& taps) const {
    const int64_t memory = width - 1;
    for (int64_t c = 0; c < count; c++) {
      for (int64_t j = 0; j < memory; j++) inputs[j * kBlock + c] = initial[(b * channels + c0 + c) * memory + j];
      for (int64_t j = 0; j < width; j++) taps[j * kBlock + c] = weight[(c0 + c) * width + j];
    }
    for (int64_t t = 0; t < length; t++)
      std::copy_n(x + (b * length + t) * channels + c0, count, inputs.data() + (memory + t) * kBlock);
  }
};

template <typename T>
void conv_forward(const ConvInputs<T>& in, T* y) {
  at::parallel_for(0, in.batch * in.blocks(), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> inputs((in.length + in.width - 1) * kBlock), taps(in.width * kBlock);
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / in.blocks(), c0 = task % in.blocks() * kBlock;
      const int64_t count = std::min(kBlock, in.channels - c0);
      in.read(b, c0, count, inputs, taps);
      for (int64_t t = 0; t < in.length; t++) {
        T sum[kBlock];
        std::copy_n(in.bias + c0, count, sum);
        for (int64_t j = 0; j < in.width; j++)
          for (int64_t c = 0; c < count; c++) sum[c] += inputs[(t + j) * kBlock + c] * taps[j * kBlock + c];
        std::copy_n(sum, count, y + (b * in.length + t) * in.channels + c0);
      }
    }
  });
}

template <typename T>
struct ConvGradients {
  T *x, *weight, *bias, *initial;  // weight and bias by batch row
};

template <typename T>
void conv_backward(const ConvInputs<T>& in, const T* dy, const ConvGradients<T>& grad) {
  const int64_t memory = in.width - 1;
  at::parallel_for(0, in.batch * in.blocks(), 1, [&](int64_t begin, int64_t end) {
    const int64_t rows = in.length + memory;
    std::vector<T> inputs(rows * kBlock), dinputs(rows * kBlock), taps(in.width * kBlock), dtaps(in.width * kBlock);
    for (int64_t task = begin; task < end; task++) {
      const int64_t b = task / in.blocks(), c0 = task % in.blocks() * kBlock;
      const int64_t count = std::min(kBlock, in.channels - c0);
      in.read(b, c0, count, inputs, taps);
      std::fill(dinputs.begin(), dinputs.end(), T(0));
      std::fill(dtaps.begin(), dtaps.end(), T(0));
      T dbias[kBlock] = {};
      for (int64_t t = 0; t < in.length; t++) {
        const T* dy_t = dy + (b * in.length + t) * in.channels + c0;
        for (int64_t c = 0; c < count; c++) dbias[c] += dy_t[c];
        for (int64_t j = 0; j < in.width; j++) {
          const int64_t at = (t + j) * kBlock;
          for (int64_t c = 0; c < count; c++) {
            dinputs[at + c] += taps[j * kBlock + c] * dy_t[c];
            dtaps[j * kBlock + c] += inputs[at + c] * dy_t[c];
          }
        }
      }
      std::copy_n(dbias, count, grad.bias + b * in.channels + c0);
      for (int64_t c = 0; c < count; c++) {
        const int64_t channel = b * in.channels + c0 + c;
        for (int64_t j = 0; j < in.width; j++) grad.weight[channel * in.width + j] = dtaps[j * kBlock + c];
        for (int64_t j = 0; j < memory; j++) grad.initial[channel * memory + j] = dinputs[j * kBlock + c];
      }
      for (int64_t t = 0; t < in.length; t++)
        std::copy_n(dinputs.data() + (memory + t) * kBlock, count, grad.x + (b * in.length + t) * in.channels + c0);
    }
  });
}

struct ConvTensors {
  Input x, weight, bias, initial;

  template <typename T>
  ConvInputs<T> as() const {
    return {x.tensor.size(0), x.tensor.size(1), x.tensor.size(2),  weight.tensor.size(1),
            x.data<T>(),      weight.data<T>(), bias.data<T>(),    initial.data<T>()};
  }
};

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& initial) {
  const ConvTensors in{Input(x), Input(weight), Input(bias), Input(initial)};
  at::Tensor y = at::empty(x.sizes(), x.options());
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    conv_forward<T>(in.as<T>(), y.mutable_data_ptr<T>());
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> causal_conv1d_backward(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& initial,
    const at::Tensor& dy) {
  const ConvTensors in{Input(x), Input(weight), Input(bias), Input(initial)};
  const Input dy_in(dy);
  const int64_t batch = x.size(0), channels = x.size(2), width = weight.size(1);
  at::Tensor dx = at::empty(x.sizes(), x.options()), dinitial = at::empty(initial.sizes(), x.options());
  at::Tensor dweight = at::empty({batch, channels, width}, x.options());
  at::Tensor dbias = at::empty({batch, channels}, x.options());
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    conv_backward<T>(in.as<T>(), dy_in.data<T>(),
                     {dx.mutable_data_ptr<T>(), dweight.mutable_data_ptr<T>(), dbias.mutable_data_ptr<T>(),
                      dinitial.mutable_data_ptr<T>()});
  });
  return {dx, at::sum(dweight, at::IntArrayRef{0}), at::sum(dbias, at::IntArrayRef{0}), dinitial};
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor bias, Tensor initial) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor x, Tensor weight, Tensor bias, Tensor initial, Tensor dy) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial)");
}

TORCH_LIBRARY_IMPL(groundthink, CPU, m) {
  m.impl("causal_conv1d", groundthink::causal_conv1d);
  m.impl("causal_conv1d_backward", groundthink::causal_conv1d_backward);
}
