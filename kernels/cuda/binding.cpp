// The CUDA launchers as operations of PyTorch: checks, memory, the current stream. The only file here that knows PyTorch.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cross_entropy.h"
#include "wkv6.h"

namespace groundthink {
namespace {

// Messages are put together as strings, not through streams: torch's wheels bring parts of a C++ runtime of their own, and
// a stream made by one and written by another crashed.
std::string text(at::ScalarType dtype) { return c10::toString(dtype); }

std::string text(at::IntArrayRef shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  return "[" + sizes + "]";
}

// Kernels read and write 16 bytes at once.
constexpr uintptr_t kAlignment = 16;

// An input as a kernel reads it, kept alive while its memory is in use.
at::Tensor ready(const at::Tensor& given) {
  const at::Tensor tensor = given.contiguous();
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0 ? tensor : tensor.clone();
}

Dtype dtype_of(const at::Tensor& tensor, const char* op, const char* instead) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Dtype::fp32;
    case at::kBFloat16:
      return Dtype::bf16;
    case at::kHalf:
      return Dtype::fp16;
    default:
      TORCH_CHECK_VALUE(false, std::string(op) + "/cuda takes float32, bfloat16 or float16, not " +
                                   text(tensor.scalar_type()) + "; " + instead + " runs the others");
  }
}

int size_of(const char* name, int64_t size) {
  TORCH_CHECK_VALUE(0 < size && size <= std::numeric_limits<int>::max(),
                    std::string(name) + " must be in 1 .. 2^31-1, but is " + std::to_string(size));
  return static_cast<int>(size);
}

void check(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype,
           const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), std::string(name) + " is on " + tensor.device().str() +
                                                          ", but v or the logits on " + like.device().str());
  TORCH_CHECK_VALUE(tensor.sizes() == shape && tensor.scalar_type() == dtype,
                    std::string(name) + " must be " + text(dtype) + " " + text(shape) + ", but is " +
                        text(tensor.scalar_type()) + " " + text(tensor.sizes()));
}

// Of the current device.
int multiprocessors() {
  static const std::vector<int> counts = [] {
    std::vector<int> found(c10::cuda::device_count());
    for (int i = 0; i < static_cast<int>(found.size()); i++)
      C10_CUDA_CHECK(cudaDeviceGetAttribute(&found[i], cudaDevAttrMultiProcessorCount, i));
    return found;
  }();
  return counts.at(c10::cuda::current_device());
}

at::Tensor bytes(size_t count, const at::Tensor& like) {
  return at::empty({static_cast<int64_t>(count)}, like.options().dtype(at::kByte));
}

// The inputs of both passes, checked.
struct Wkv6Inputs {
  Wkv6Shape shape;
  Wkv6Sizes sizes;
  at::Tensor r, k, v, log_w, u;

  Wkv6Inputs(const at::Tensor& r_BTHD, const at::Tensor& k_BTHD, const at::Tensor& v_BTHD, const at::Tensor& log_w_BTHD,
             const at::Tensor& u_HD) {
    const char* const instead = "GROUNDTHINK_WKV6=chunked";
    TORCH_CHECK_VALUE(r_BTHD.dim() == 4 && v_BTHD.dim() == 4,
                      "r and v must have 4 dimensions [B,T,H,D], but are " + text(r_BTHD.sizes()) + " and " +
                          text(v_BTHD.sizes()));
    const int64_t keys = r_BTHD.size(3), values = v_BTHD.size(3);
    TORCH_CHECK_VALUE(keys == values && (values == 32 || values == 64),
                      "wkv6/cuda takes heads of 32 keys and 32 values, or 64 and 64, not K=" + std::to_string(keys) +
                          " and V=" + std::to_string(values) + "; " + instead + " runs any head size");
    shape.B = size_of("B", v_BTHD.size(0));
    shape.T = size_of("T", v_BTHD.size(1));
    shape.H = size_of("H", v_BTHD.size(2));
    shape.D = static_cast<int>(values);
    shape.values = dtype_of(v_BTHD, "wkv6", instead);
    shape.decay = log_w_BTHD.scalar_type() == at::kFloat ? Dtype::fp32 : shape.values;
    check("r", r_BTHD, v_BTHD.sizes(), v_BTHD.scalar_type(), v_BTHD);
    check("k", k_BTHD, v_BTHD.sizes(), v_BTHD.scalar_type(), v_BTHD);
    check("log_w", log_w_BTHD, v_BTHD.sizes(), shape.decay == Dtype::fp32 ? at::kFloat : v_BTHD.scalar_type(), v_BTHD);
    check("u", u_HD, {shape.H, shape.D}, at::kFloat, v_BTHD);
    sizes = wkv6_sizes(shape, multiprocessors());
    r = ready(r_BTHD);
    k = ready(k_BTHD);
    v = ready(v_BTHD);
    log_w = ready(log_w_BTHD);
    u = ready(u_HD);
  }

  std::vector<int64_t> state() const { return {shape.B, shape.H, shape.D, shape.D}; }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> wkv6(const at::Tensor& r, const at::Tensor& k,
                                                                const at::Tensor& v, const at::Tensor& log_w,
                                                                const at::Tensor& u, const at::Tensor& initial,
                                                                bool keep) {
  const c10::cuda::CUDAGuard guard(v.device());
  const Wkv6Inputs in(r, k, v, log_w, u);
  check("initial", initial, in.state(), at::kFloat, v);
  const at::Tensor initial_in = ready(initial);
  at::Tensor y = at::empty(v.sizes(), v.options()), final = at::empty(in.state(), initial.options());
  at::Tensor checkpoints = bytes(keep ? in.sizes.checkpoints : 0, v);
  at::Tensor scores =
      at::empty({keep ? static_cast<int64_t>(in.sizes.scores / sizeof(float)) : 0}, v.options().dtype(at::kFloat));
  at::Tensor workspace = bytes(in.sizes.forward_workspace, v);
  C10_CUDA_CHECK(wkv6_forward(in.shape, multiprocessors(), in.r.const_data_ptr(), in.k.const_data_ptr(),
                              in.v.const_data_ptr(), in.log_w.const_data_ptr(), in.u.const_data_ptr<float>(),
                              initial_in.const_data_ptr<float>(), y.mutable_data_ptr(), final.mutable_data_ptr<float>(),
                              keep ? checkpoints.mutable_data_ptr() : nullptr,
                              keep ? scores.mutable_data_ptr<float>() : nullptr, workspace.mutable_data_ptr(),
                              c10::cuda::getCurrentCUDAStream()));
  return {y, final, checkpoints, scores};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> wkv6_backward_pass(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_w, const at::Tensor& u,
    const at::Tensor& checkpoints, const at::Tensor& scores, const std::optional<at::Tensor>& dy,
    const std::optional<at::Tensor>& dfinal) {
  const c10::cuda::CUDAGuard guard(v.device());
  const Wkv6Inputs in(r, k, v, log_w, u);
  check("checkpoints", checkpoints, {static_cast<int64_t>(in.sizes.checkpoints)}, at::kByte, v);
  check("scores", scores, {static_cast<int64_t>(in.sizes.scores / sizeof(float))}, at::kFloat, v);
  // a result that nothing depends on has no gradient
  const at::Tensor dy_in = dy ? ready(dy->to(v.scalar_type())) : at::zeros(v.sizes(), v.options());
  const at::Tensor dfinal_in = dfinal ? ready(dfinal->to(at::kFloat)) : at::zeros(in.state(), in.u.options());
  check("dy", dy_in, v.sizes(), v.scalar_type(), v);
  check("dfinal", dfinal_in, in.state(), at::kFloat, v);
  at::Tensor dr = at::empty(v.sizes(), v.options()), dk = at::empty(v.sizes(), v.options());
  at::Tensor dv = at::empty(v.sizes(), v.options()), dlog_w = at::empty(v.sizes(), log_w.options());
  at::Tensor du = at::empty(u.sizes(), u.options()), dinitial = at::empty(in.state(), in.u.options());
  at::Tensor workspace = bytes(in.sizes.backward_workspace, v);
  C10_CUDA_CHECK(wkv6_backward(in.shape, multiprocessors(), in.r.const_data_ptr(), in.k.const_data_ptr(),
                               in.v.const_data_ptr(), in.log_w.const_data_ptr(), in.u.const_data_ptr<float>(),
                               checkpoints.const_data_ptr(), scores.const_data_ptr<float>(), dy_in.const_data_ptr(),
                               dfinal_in.const_data_ptr<float>(), dr.mutable_data_ptr(), dk.mutable_data_ptr(),
                               dv.mutable_data_ptr(), dlog_w.mutable_data_ptr(), du.mutable_data_ptr<float>(),
                               dinitial.mutable_data_ptr<float>(), workspace.mutable_data_ptr(),
                               c10::cuda::getCurrentCUDAStream()));
  return {dr, dk, dv, dlog_w, du, dinitial};
}

// The inputs of both passes, checked.
struct LossInputs {
  int rows, classes;
  Dtype values;
  at::Tensor logits, targets;

  LossInputs(const at::Tensor& logits_NV, const at::Tensor& targets_N) {
    TORCH_CHECK_VALUE(logits_NV.dim() == 2, "logits must have 2 dimensions [N,V], but are " + text(logits_NV.sizes()));
    rows = size_of("N", logits_NV.size(0));
    classes = size_of("V", logits_NV.size(1));
    values = dtype_of(logits_NV, "cross_entropy", "GROUNDTHINK_CROSS_ENTROPY=torch");
    check("targets", targets_N, {rows}, at::kLong, logits_NV);
    logits = ready(logits_NV);
    targets = ready(targets_N);
  }
};

std::tuple<at::Tensor, at::Tensor> cross_entropy(const at::Tensor& logits, const at::Tensor& targets) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const LossInputs in(logits, targets);
  const at::TensorOptions options = logits.options().dtype(at::kFloat);
  at::Tensor loss = at::empty({}, options), losses = at::empty({in.rows}, options);
  at::Tensor stats = at::empty({in.rows, kCrossEntropyStats}, options);
  C10_CUDA_CHECK(cross_entropy_forward(in.values, in.rows, in.classes, in.logits.const_data_ptr(),
                                       in.targets.const_data_ptr<int64_t>(), stats.mutable_data_ptr<float>(),
                                       losses.mutable_data_ptr<float>(), loss.mutable_data_ptr<float>(),
                                       c10::cuda::getCurrentCUDAStream()));
  return {loss, stats};
}

at::Tensor cross_entropy_backward_pass(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& stats,
                                       const at::Tensor& dloss) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const LossInputs in(logits, targets);
  check("stats", stats, {in.rows, kCrossEntropyStats}, at::kFloat, logits);
  const at::Tensor stats_in = ready(stats), dloss_in = ready(dloss.to(at::kFloat));
  check("dloss", dloss_in, {}, at::kFloat, logits);
  at::Tensor dlogits = at::empty(logits.sizes(), logits.options());
  C10_CUDA_CHECK(cross_entropy_backward(in.values, in.rows, in.classes, in.logits.const_data_ptr(),
                                        in.targets.const_data_ptr<int64_t>(), stats_in.const_data_ptr<float>(),
                                        dloss_in.const_data_ptr<float>(), dlogits.mutable_data_ptr(),
                                        c10::cuda::getCurrentCUDAStream()));
  return dlogits;
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def(
      "wkv6_cuda(Tensor r, Tensor k, Tensor v, Tensor log_w, Tensor u, Tensor initial, bool keep) -> (Tensor y, Tensor "
      "final, Tensor checkpoints, Tensor scores)");
  m.def(
      "wkv6_cuda_backward(Tensor r, Tensor k, Tensor v, Tensor log_w, Tensor u, Tensor checkpoints, Tensor scores, "
      "Tensor? dy, Tensor? dfinal) -> (Tensor dr, Tensor dk, Tensor dv, Tensor dlog_w, Tensor du, Tensor dinitial)");
  m.def("cross_entropy_cuda(Tensor logits, Tensor targets) -> (Tensor loss, Tensor stats)");
  m.def(
      "cross_entropy_cuda_backward(Tensor logits, Tensor targets, Tensor stats, Tensor dloss) -> Tensor dlogits");
}

TORCH_LIBRARY_IMPL(groundthink, CUDA, m) {
  m.impl("wkv6_cuda", groundthink::wkv6);
  m.impl("wkv6_cuda_backward", groundthink::wkv6_backward_pass);
  m.impl("cross_entropy_cuda", groundthink::cross_entropy);
  m.impl("cross_entropy_cuda_backward", groundthink::cross_entropy_backward_pass);
}
