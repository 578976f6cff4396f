// RMSNorm on the CPU, alone and of a gated value x silu(z). A row is normalised in one pass over registers and cache;
// the gradient of the weight is summed by blocks of rows, and the blocks in order.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "tensors.h"
#include "vectors.h"

namespace groundthink {
namespace {

constexpr int64_t kRowsOfBlock = 16;

// What a row is before it is normalised: x itself, or x silu(z).
template <typename T, bool kGated>
struct Rows {
  const T *x, *z, *weight;
  int64_t count, size, groups;  // row r has the weights of group r % groups
  T eps;

  const T* weight_of(int64_t row) const { return weight + row % groups * size; }

  Vector<T> value(int64_t row, int64_t at, int64_t lanes) const {
    const Vector<T> x_r = load(x + row * size + at, lanes);
    if constexpr (!kGated) return x_r;
    const Vector<T> z_r = load(z + row * size + at, lanes);
    return x_r * z_r * sigmoid(z_r);
  }

  static Vector<T> sigmoid(Vector<T> z) {
    const Vector<T> zero = {}, one = zero + T(1);
    const Vector<T> e = exp_of_nonpositive(z > zero ? -z : z);
    return (z > zero ? one : e) / (one + e);
  }
};

template <typename T, bool kGated>
void forward_rows(const Rows<T, kGated>& rows, T* y, T* scale_R) {
  at::parallel_for(0, (rows.count + kRowsOfBlock - 1) / kRowsOfBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin * kRowsOfBlock; r < std::min(end * kRowsOfBlock, rows.count); r++) {
      T* out = y + r * rows.size;
      Vector<T> squares = {};
      for_vectors<T>(rows.size, [&](int64_t at, auto lanes) {
        const Vector<T> value = rows.value(r, at, lanes);
        squares += value * value;
        store(out + at, value, lanes);
      });
      const T scale = 1 / std::sqrt(sum_of_lanes<T>(squares) / rows.size + rows.eps);
      scale_R[r] = scale;
      for_vectors<T>(rows.size, [&](int64_t at, auto lanes) {
        store(out + at, Vector<T>(load(out + at, lanes) * scale * load(rows.weight_of(r) + at, lanes)), lanes);
      });
    }
  });
}

template <typename T>
struct Gradients {
  T *x, *z, *weight;
};

// One row: d value = scale (w dy - value scale^2 mean(w dy value)), and from it those of x and z. Adds to dweight.
template <typename T, bool kGated>
void backward_row(const Rows<T, kGated>& rows, int64_t r, const T* dy, T scale, const Gradients<T>& grad, T* dweight) {
  const T* weight = rows.weight_of(r);
  Vector<T> products = {};
  for_vectors<T>(rows.size, [&](int64_t at, auto lanes) {
    const Vector<T> value = rows.value(r, at, lanes), dy_r = load(dy + r * rows.size + at, lanes);
    products += value * dy_r * load(weight + at, lanes);
    store(dweight + at, Vector<T>(load(dweight + at, lanes) + dy_r * value * scale), lanes);
  });
  const T shared = sum_of_lanes<T>(products) / rows.size * scale * scale;
  for_vectors<T>(rows.size, [&](int64_t at, auto lanes) {
    const int64_t here = r * rows.size + at;
    const Vector<T> wdy = load(dy + here, lanes) * load(weight + at, lanes);
    const Vector<T> dvalue = (wdy - rows.value(r, at, lanes) * shared) * scale;
    if constexpr (!kGated) {
      store(grad.x + here, dvalue, lanes);
    } else {
      const Vector<T> x = load(rows.x + here, lanes), z = load(rows.z + here, lanes);
      const Vector<T> s = Rows<T, kGated>::sigmoid(z);
      store(grad.x + here, Vector<T>(dvalue * z * s), lanes);
      store(grad.z + here, Vector<T>(dvalue * x * s * (z * (1 - s) + 1)), lanes);
    }
  });
}

template <typename T, bool kGated>
void backward_rows(const Rows<T, kGated>& rows, const T* dy, const T* scale_R, const Gradients<T>& grad) {
  const int64_t width = rows.groups * rows.size, blocks = (rows.count + kRowsOfBlock - 1) / kRowsOfBlock;
  std::vector<T> partial(blocks * width, T(0));
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++)
      for (int64_t r = block * kRowsOfBlock; r < std::min((block + 1) * kRowsOfBlock, rows.count); r++)
        backward_row(rows, r, dy, scale_R[r], grad, partial.data() + block * width + r % rows.groups * rows.size);
  });
  std::vector<double> total(width, 0.0);
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t i = 0; i < width; i++) total[i] += partial[block * width + i];
  std::copy(total.begin(), total.end(), grad.weight);
}

// x [rows, size], weight [groups, size], and z like x or no tensor at all.
struct NormTensors {
  Input x, weight;
  at::Tensor z;
  double eps;
  NormTensors(const at::Tensor& x_, const at::Tensor& weight_, const std::optional<at::Tensor>& z_, double eps_)
      : x(x_), weight(weight_), z(z_.has_value() ? z_->contiguous() : at::Tensor()), eps(eps_) {}

  // Calls run(rows) with the rows in their dtype, gated or not.
  template <typename Run>
  void with_rows(Run run) const {
    dispatch(x.tensor, [&](auto type) {
      using T = decltype(type);
      const int64_t count = x.tensor.size(0), size = x.tensor.size(1), groups = weight.tensor.size(0);
      if (z.defined())
        run(Rows<T, true>{x.data<T>(), z.const_data_ptr<T>(), weight.data<T>(), count, size, groups, T(eps)});
      else
        run(Rows<T, false>{x.data<T>(), nullptr, weight.data<T>(), count, size, groups, T(eps)});
    });
  }
};

std::tuple<at::Tensor, at::Tensor> norm_forward(const NormTensors& in) {
  at::Tensor y = at::empty(in.x.tensor.sizes(), in.x.tensor.options());
  at::Tensor scale_R = at::empty({in.x.tensor.size(0)}, in.x.tensor.options());
  in.with_rows([&](const auto& rows) {
    using T = std::decay_t<decltype(rows.eps)>;
    forward_rows(rows, y.mutable_data_ptr<T>(), scale_R.mutable_data_ptr<T>());
  });
  return {y, scale_R};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_backward(const NormTensors& in, const at::Tensor& scale_R,
                                                             const at::Tensor& dy) {
  const Input scale_in(scale_R), dy_in(dy);
  at::Tensor dx = at::empty(in.x.tensor.sizes(), dy.options());
  at::Tensor dz = in.z.defined() ? at::empty(in.z.sizes(), dy.options()) : at::Tensor();
  at::Tensor dweight = at::empty(in.weight.tensor.sizes(), dy.options());
  in.with_rows([&](const auto& rows) {
    using T = std::decay_t<decltype(rows.eps)>;
    T* dz_data = dz.defined() ? dz.mutable_data_ptr<T>() : nullptr;
    backward_rows(rows, dy_in.data<T>(), scale_in.data<T>(),
                  Gradients<T>{dx.mutable_data_ptr<T>(), dz_data, dweight.mutable_data_ptr<T>()});
  });
  return {dx, dz, dweight};
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return norm_forward(NormTensors(x, weight, std::nullopt, eps));
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                     const at::Tensor& scale, const at::Tensor& dy) {
  const auto [dx, dz, dweight] = norm_backward(NormTensors(x, weight, std::nullopt, eps), scale, dy);
  return {dx, dweight};
}

std::tuple<at::Tensor, at::Tensor> gated_rms_norm(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight,
                                                  double eps) {
  return norm_forward(NormTensors(x, weight, z, eps));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_rms_norm_backward(const at::Tensor& x, const at::Tensor& z,
                                                                       const at::Tensor& weight, double eps,
                                                                       const at::Tensor& scale, const at::Tensor& dy) {
  return norm_backward(NormTensors(x, weight, z, eps), scale, dy);
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor scale)");
  m.def(
      "rms_norm_backward(Tensor x, Tensor weight, float eps, Tensor scale, Tensor dy) -> (Tensor dx, Tensor dweight)");
  m.def("gated_rms_norm(Tensor x, Tensor z, Tensor weight, float eps) -> (Tensor y, Tensor scale)");
  m.def(
      "gated_rms_norm_backward(Tensor x, Tensor z, Tensor weight, float eps, Tensor scale, Tensor dy) "
      "-> (Tensor dx, Tensor dz, Tensor dweight)");
}

TORCH_LIBRARY_IMPL(groundthink, CPU, m) {
  m.impl("rms_norm", groundthink::rms_norm);
  m.impl("rms_norm_backward", groundthink::rms_norm_backward);
  m.impl("gated_rms_norm", groundthink::gated_rms_norm);
  m.impl("gated_rms_norm_backward", groundthink::gated_rms_norm_backward);
}
