// SSD on the CPU: the scan of linear_scan.h with r = C, k = B, v = dt x, w = exp(dt A) the same for every key, and the
// state transposed: [P, N] is [values, keys].
#include <ATen/Parallel.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <tuple>

#include "linear_scan.h"
#include "tensors.h"

namespace groundthink {
namespace {

template <typename T>
struct SsdInputs {
  int64_t batch, length, H, P, G, N;
  const T *x, *dt, *A, *a, *B, *C, *initial;  // a = exp(dt A)

  int64_t head(int64_t b, int64_t h, int64_t t) const { return (b * length + t) * H + h; }
  int64_t group(int64_t b, int64_t h, int64_t t) const { return (b * length + t) * G + h / (H / G); }
};

// Fills k, w and v of the chunk that starts at position t.
template <typename T>
void read_chunk(LinearScan<T, true>& scan, const SsdInputs<T>& in, int64_t b, int64_t h, int64_t t, int64_t steps) {
  pack(scan.k, scan.key_stride, in.B + in.group(b, h, t) * in.N, in.G * in.N, in.N, steps);
  for (int64_t s = 0; s < steps; s++) {
    const int64_t at = in.head(b, h, t + s);
    std::fill_n(scan.w + s * scan.key_stride, in.N, in.a[at]);
    for (int64_t p = 0; p < in.P; p++) scan.v[s * scan.value_stride + p] = in.dt[at] * in.x[at * in.P + p];
  }
}

template <typename T>
void ssd_forward_heads(const SsdInputs<T>& in, T* y, T* final) {
  const int64_t P = in.P, N = in.N;
  at::parallel_for(0, in.batch * in.H, 1, [&](int64_t begin, int64_t end) {
    LinearScan<T, true> scan(N, P);
    Buffer<T> state(scan.state_size());
    for (int64_t head = begin; head < end; head++) {
      const int64_t b = head / in.H, h = head % in.H;
      state.zero();
      transpose(in.initial + head * P * N, N, state + 0, scan.value_stride, P, N);
      for (int64_t t = 0; t < in.length; t += kChunk) {
        const int64_t steps = std::min(kChunk, in.length - t);
        read_chunk(scan, in, b, h, t, steps);
        pack(scan.r, scan.key_stride, in.C + in.group(b, h, t) * N, in.G * N, N, steps);
        scan.y.zero();
        scan.forward(steps, state + 0);
        unpack(scan.y, scan.value_stride, y + in.head(b, h, t) * P, in.H * P, P, steps);
      }
      transpose(state + 0, scan.value_stride, final + head * P * N, N, N, P);
    }
  });
}

template <typename T>
struct SsdGradients {
  T *x, *dt;
  double* A;  // by batch row
  T *B, *C;   // by head
  T* initial;
};

// Gradients of x, dt and A at position s of the chunk, from those of dt x and exp(dt A). What A gets from all positions
// and keys may cancel almost entirely, so it is summed in double.
template <typename T>
void step_backward(const LinearScan<T, true>& scan, const SsdInputs<T>& in, int64_t s, int64_t at, T A, double& dA,
                   const SsdGradients<T>& grad) {
  double dlog_a = 0;
  const T* dw = scan.dw + s * scan.key_stride;
#pragma omp simd reduction(+ : dlog_a)
  for (int64_t n = 0; n < in.N; n++) dlog_a += dw[n];
  dlog_a *= in.a[at];
  const T* dv = scan.dv + s * scan.value_stride;
  grad.dt[at] = dot(dv, in.x + at * in.P, in.P) + T(dlog_a * A);
  dA += dlog_a * in.dt[at];
  for (int64_t p = 0; p < in.P; p++) grad.x[at * in.P + p] = dv[p] * in.dt[at];
}

template <typename T>
void ssd_backward_heads(const SsdInputs<T>& in, const T* dy, const T* dfinal, const SsdGradients<T>& grad) {
  const int64_t P = in.P, N = in.N, chunks = (in.length + kChunk - 1) / kChunk;
  at::parallel_for(0, in.batch * in.H, 1, [&](int64_t begin, int64_t end) {
    LinearScan<T, true> scan(N, P);
    Buffer<T> checkpoints(chunks * scan.state_size()), dstate(scan.state_size());
    for (int64_t head = begin; head < end; head++) {
      const int64_t b = head / in.H, h = head % in.H;
      pack(checkpoints, scan.key_stride, in.initial + head * P * N, N, N, P);
      for (int64_t c = 0; c + 1 < chunks; c++) {
        read_chunk(scan, in, b, h, c * kChunk, kChunk);
        std::copy_n(checkpoints + c * scan.state_size(), scan.state_size(), checkpoints + (c + 1) * scan.state_size());
        scan.advance(kChunk, checkpoints + (c + 1) * scan.state_size());
      }
      dstate.zero();
      pack(dstate, scan.key_stride, dfinal + head * P * N, N, N, P);
      double dA = 0;
      for (int64_t c = chunks - 1; c >= 0; c--) {
        const int64_t t = c * kChunk, steps = std::min(kChunk, in.length - t);
        read_chunk(scan, in, b, h, t, steps);
        pack(scan.r, scan.key_stride, in.C + in.group(b, h, t) * N, in.G * N, N, steps);
        pack(scan.dy, scan.value_stride, dy + in.head(b, h, t) * P, in.H * P, P, steps);
        for (Buffer<T>* out : {&scan.dr, &scan.dk, &scan.dw, &scan.dv}) out->zero();
        scan.backward(steps, checkpoints + c * scan.state_size(), dstate + 0);
        for (int64_t s = steps - 1; s >= 0; s--) step_backward(scan, in, s, in.head(b, h, t + s), in.A[h], dA, grad);
        unpack(scan.dk, scan.key_stride, grad.B + in.head(b, h, t) * N, in.H * N, N, steps);
        unpack(scan.dr, scan.key_stride, grad.C + in.head(b, h, t) * N, in.H * N, N, steps);
      }
      grad.A[head] = dA;
      unpack(dstate, scan.key_stride, grad.initial + head * P * N, N, N, P);
    }
  });
}

// Contiguous inputs of a call, and their pointers in one dtype.
struct SsdTensors {
  Input x, dt, A, a, B, C, initial;
  SsdTensors(const at::Tensor& x_, const at::Tensor& dt_, const at::Tensor& A_, const at::Tensor& B_,
             const at::Tensor& C_, const at::Tensor& initial_)
      : x(x_), dt(dt_), A(A_), a(at::exp(at::mul(dt_, A_))), B(B_), C(C_), initial(initial_) {}

  template <typename T>
  SsdInputs<T> as() const {
    return {x.tensor.size(0), x.tensor.size(1), x.tensor.size(2), x.tensor.size(3), B.tensor.size(2), B.tensor.size(3),
            x.data<T>(),      dt.data<T>(),     A.data<T>(),      a.data<T>(),      B.data<T>(),      C.data<T>(),
            initial.data<T>()};
  }
};

std::tuple<at::Tensor, at::Tensor> ssd_forward(const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A,
                                               const at::Tensor& B, const at::Tensor& C, const at::Tensor& initial) {
  const SsdTensors in(x, dt, A, B, C, initial);
  at::Tensor y = at::empty(x.sizes(), x.options()), final = at::empty(initial.sizes(), x.options());
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    ssd_forward_heads<T>(in.as<T>(), y.mutable_data_ptr<T>(), final.mutable_data_ptr<T>());
  });
  return {y, final};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ssd_backward(
    const at::Tensor& x, const at::Tensor& dt, const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
    const at::Tensor& initial, const at::Tensor& dy, const at::Tensor& dfinal) {
  const SsdTensors in(x, dt, A, B, C, initial);
  const Input dy_in(dy), dfinal_in(dfinal);
  const int64_t batch = x.size(0), length = x.size(1), H = x.size(2), G = B.size(2), N = B.size(3);
  at::Tensor dx = at::empty(x.sizes(), x.options()), ddt = at::empty(dt.sizes(), x.options());
  at::Tensor dA = at::empty({batch, H}, x.options().dtype(at::kDouble)), dinitial = at::empty(initial.sizes(), x.options());
  at::Tensor dB = at::empty({batch, length, G, H / G, N}, x.options()), dC = at::empty(dB.sizes(), x.options());
  dispatch(x, [&](auto type) {
    using T = decltype(type);
    const SsdGradients<T> grad{dx.mutable_data_ptr<T>(), ddt.mutable_data_ptr<T>(), dA.mutable_data_ptr<double>(),
                               dB.mutable_data_ptr<T>(), dC.mutable_data_ptr<T>(),  dinitial.mutable_data_ptr<T>()};
    ssd_backward_heads<T>(in.as<T>(), dy_in.data<T>(), dfinal_in.data<T>(), grad);
  });
  const at::Tensor dA_H = at::sum(dA, at::IntArrayRef{0}).to(x.scalar_type());
  return {dx, ddt, dA_H, at::sum(dB, at::IntArrayRef{3}), at::sum(dC, at::IntArrayRef{3}),
          dinitial};
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def("ssd(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor initial) -> (Tensor y, Tensor final)");
  m.def(
      "ssd_backward(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor initial, Tensor dy, Tensor dfinal) "
      "-> (Tensor dx, Tensor ddt, Tensor dA, Tensor dB, Tensor dC, Tensor dinitial)");
}

TORCH_LIBRARY_IMPL(groundthink, CPU, m) {
  m.impl("ssd", groundthink::ssd_forward);
  m.impl("ssd_backward", groundthink::ssd_backward);
}
