// wkv6 on the CPU: one task a batch row and head. Equations and gradients: kernels/api.py and linear_scan.h, plus the
// bonus y_t += (sum_i r_i u_i k_i) v_t, which the state does not carry.
#include <ATen/Parallel.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <tuple>

#include "linear_scan.h"
#include "tensors.h"

namespace groundthink {
namespace {

struct Sizes {
  int64_t B, T, H, K, V;
  explicit Sizes(const at::Tensor& r, const at::Tensor& v)
      : B(r.size(0)), T(r.size(1)), H(r.size(2)), K(r.size(3)), V(v.size(3)) {}
  int64_t position(int64_t b, int64_t h, int64_t t) const { return (b * T + t) * H + h; }
};

// sum_i r_i u_i k_i at position s of the chunk.
template <typename T>
T bonus_of(const LinearScan<T, false>& scan, int64_t s, const T* u) {
  const T *r = scan.r + s * scan.key_stride, *k = scan.k + s * scan.key_stride;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < scan.K; i++) sum += r[i] * u[i] * k[i];
  return sum;
}

template <typename T>
void wkv6_forward_heads(const Sizes& size, const T* r, const T* k, const T* v, const T* w, const T* u, const T* initial,
                        T* y, T* final) {
  const int64_t K = size.K, V = size.V, key_row = size.H * K, value_row = size.H * V;
  at::parallel_for(0, size.B * size.H, 1, [&](int64_t begin, int64_t end) {
    LinearScan<T, false> scan(K, V);
    Buffer<T> state(scan.state_size());
    for (int64_t head = begin; head < end; head++) {
      const int64_t b = head / size.H, h = head % size.H;
      state.zero();
      pack(state, scan.value_stride, initial + head * K * V, V, V, K);
      for (int64_t t = 0; t < size.T; t += kChunk) {
        const int64_t steps = std::min(kChunk, size.T - t), at = size.position(b, h, t);
        pack(scan.r, scan.key_stride, r + at * K, key_row, K, steps);
        pack(scan.k, scan.key_stride, k + at * K, key_row, K, steps);
        pack(scan.w, scan.key_stride, w + at * K, key_row, K, steps);
        pack(scan.v, scan.value_stride, v + at * V, value_row, V, steps);
        for (int64_t s = 0; s < steps; s++) {
          const T bonus = bonus_of(scan, s, u + h * K);
          for (int64_t j = 0; j < V; j++) scan.y[s * scan.value_stride + j] = bonus * scan.v[s * scan.value_stride + j];
        }
        scan.forward(steps, state + 0);
        unpack(scan.y, scan.value_stride, y + at * V, value_row, V, steps);
      }
      unpack(state, scan.value_stride, final + head * K * V, V, V, K);
    }
  });
}

template <typename T>
struct Wkv6Gradients {
  T *r, *k, *v, *log_w, *u, *initial;  // u by batch row and head
};

// Adds the gradients of the bonus to dr, dk, dv and du, for one position of the chunk.
template <typename T>
void bonus_backward(LinearScan<T, false>& scan, int64_t s, const T* u, T* du) {
  const int64_t key = s * scan.key_stride, value = s * scan.value_stride;
  const T *r = scan.r + key, *k = scan.k + key, *v = scan.v + value, *dy = scan.dy + value;
  T *dr = scan.dr + key, *dk = scan.dk + key, *dv = scan.dv + value;
  const T v_dy = dot(v, dy, scan.V);
  const T bonus = bonus_of(scan, s, u);
  for (int64_t i = 0; i < scan.K; i++) {
    dr[i] += u[i] * k[i] * v_dy;
    dk[i] += u[i] * r[i] * v_dy;
    du[i] += r[i] * k[i] * v_dy;
  }
  for (int64_t j = 0; j < scan.V; j++) dv[j] += bonus * dy[j];
}

template <typename T>
void wkv6_backward_heads(const Sizes& size, const T* r, const T* k, const T* v, const T* w, const T* u,
                         const T* initial, const T* dy, const T* dfinal, const Wkv6Gradients<T>& grad) {
  const int64_t K = size.K, V = size.V, key_row = size.H * K, value_row = size.H * V;
  const int64_t chunks = (size.T + kChunk - 1) / kChunk;
  at::parallel_for(0, size.B * size.H, 1, [&](int64_t begin, int64_t end) {
    LinearScan<T, false> scan(K, V);
    Buffer<T> checkpoints(chunks * scan.state_size()), dstate(scan.state_size());
    const auto read = [&](int64_t at, int64_t steps) {
      pack(scan.k, scan.key_stride, k + at * K, key_row, K, steps);
      pack(scan.w, scan.key_stride, w + at * K, key_row, K, steps);
      pack(scan.v, scan.value_stride, v + at * V, value_row, V, steps);
    };
    for (int64_t head = begin; head < end; head++) {
      const int64_t b = head / size.H, h = head % size.H;
      transpose(initial + head * K * V, V, checkpoints + 0, scan.key_stride, K, V);
      for (int64_t c = 0; c + 1 < chunks; c++) {
        read(size.position(b, h, c * kChunk), kChunk);
        std::copy_n(checkpoints + c * scan.state_size(), scan.state_size(), checkpoints + (c + 1) * scan.state_size());
        scan.advance(kChunk, checkpoints + (c + 1) * scan.state_size());
      }
      dstate.zero();
      transpose(dfinal + head * K * V, V, dstate + 0, scan.key_stride, K, V);
      T* du = grad.u + head * K;
      std::fill_n(du, K, T(0));
      for (int64_t c = chunks - 1; c >= 0; c--) {
        const int64_t t = c * kChunk, steps = std::min(kChunk, size.T - t), at = size.position(b, h, t);
        read(at, steps);
        pack(scan.r, scan.key_stride, r + at * K, key_row, K, steps);
        pack(scan.dy, scan.value_stride, dy + at * V, value_row, V, steps);
        for (Buffer<T>* out : {&scan.dr, &scan.dk, &scan.dw, &scan.dv}) out->zero();
        scan.backward(steps, checkpoints + c * scan.state_size(), dstate + 0);
        for (int64_t s = steps - 1; s >= 0; s--) bonus_backward(scan, s, u + h * K, du);
        for (int64_t i = 0; i < steps * scan.key_stride; i++) scan.dw[i] *= scan.w[i];
        unpack(scan.dr, scan.key_stride, grad.r + at * K, key_row, K, steps);
        unpack(scan.dk, scan.key_stride, grad.k + at * K, key_row, K, steps);
        unpack(scan.dw, scan.key_stride, grad.log_w + at * K, key_row, K, steps);
        unpack(scan.dv, scan.value_stride, grad.v + at * V, value_row, V, steps);
      }
      transpose(dstate + 0, scan.key_stride, grad.initial + head * K * V, V, V, K);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> wkv6_forward(const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& log_w, const at::Tensor& u,
                                                const at::Tensor& initial) {
  const Sizes size(r, v);
  const Input r_in(r), k_in(k), v_in(v), w_in(at::exp(log_w)), u_in(u), initial_in(initial);
  at::Tensor y = at::empty({size.B, size.T, size.H, size.V}, v.options());
  at::Tensor final = at::empty({size.B, size.H, size.K, size.V}, v.options());
  dispatch(v, [&](auto type) {
    using T = decltype(type);
    wkv6_forward_heads<T>(size, r_in.data<T>(), k_in.data<T>(), v_in.data<T>(), w_in.data<T>(), u_in.data<T>(),
                          initial_in.data<T>(), y.mutable_data_ptr<T>(), final.mutable_data_ptr<T>());
  });
  return {y, final};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> wkv6_backward(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_w, const at::Tensor& u,
    const at::Tensor& initial, const at::Tensor& dy, const at::Tensor& dfinal) {
  const Sizes size(r, v);
  const Input r_in(r), k_in(k), v_in(v), w_in(at::exp(log_w)), u_in(u), initial_in(initial), dy_in(dy), dfinal_in(dfinal);
  const auto keys = [&] { return at::empty({size.B, size.T, size.H, size.K}, v.options()); };
  at::Tensor dr = keys(), dk = keys(), dlog_w = keys(), dv = at::empty({size.B, size.T, size.H, size.V}, v.options());
  at::Tensor du = at::empty({size.B, size.H, size.K}, v.options());
  at::Tensor dinitial = at::empty({size.B, size.H, size.K, size.V}, v.options());
  dispatch(v, [&](auto type) {
    using T = decltype(type);
    const Wkv6Gradients<T> grad{dr.mutable_data_ptr<T>(),     dk.mutable_data_ptr<T>(), dv.mutable_data_ptr<T>(),
                                dlog_w.mutable_data_ptr<T>(), du.mutable_data_ptr<T>(), dinitial.mutable_data_ptr<T>()};
    wkv6_backward_heads<T>(size, r_in.data<T>(), k_in.data<T>(), v_in.data<T>(), w_in.data<T>(), u_in.data<T>(),
                           initial_in.data<T>(), dy_in.data<T>(), dfinal_in.data<T>(), grad);
  });
  return {dr, dk, dv, dlog_w, at::sum(du, at::IntArrayRef{0}), dinitial};
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def("wkv6(Tensor r, Tensor k, Tensor v, Tensor log_w, Tensor u, Tensor initial) -> (Tensor y, Tensor final)");
  m.def(
      "wkv6_backward(Tensor r, Tensor k, Tensor v, Tensor log_w, Tensor u, Tensor initial, Tensor dy, Tensor dfinal) "
      "-> (Tensor dr, Tensor dk, Tensor dv, Tensor dlog_w, Tensor du, Tensor dinitial)");
}

TORCH_LIBRARY_IMPL(groundthink, CPU, m) {
  m.impl("wkv6", groundthink::wkv6_forward);
  m.impl("wkv6_backward", groundthink::wkv6_backward);
}
