// Mean cross entropy on the CPU: forward reads the logits once from memory (a row stays in the cache between its maximum
// and its sum), backward reads them once and writes the gradient once. A row is one task.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "tensors.h"
#include "vectors.h"

namespace groundthink {
namespace {

// Vectors that are added up in the dtype of the logits before their sum goes on in double.
constexpr int64_t kBlockVectors = 16;

template <typename T>
T row_maximum(const T* row, int64_t size) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  Vector<T> largest;
  for (int64_t i = 0; i < kLanes<T>; i++) largest[i] = kLowest;
  // NaN is passed over here, and meets the sum
  for_vectors<T>(size, [&](int64_t at, auto count) {
    const Vector<T> x = load(row + at, count, kLowest);
    largest = x > largest ? x : largest;
  });
  T result = largest[0];
  for (int64_t i = 1; i < kLanes<T>; i++) result = std::max(result, T(largest[i]));
  return result;
}

// sum_j exp(x_j - maximum)
template <typename T>
double row_sum(const T* row, int64_t size, T maximum) {
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  constexpr int64_t kBlock = kBlockVectors * kLanes<T>;
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    Vector<T> sum = {};
    for_vectors<T>(std::min(kBlock, size - begin), [&](int64_t at, auto count) {
      sum += exp_of_nonpositive(load(row + begin + at, count, kLowest) - maximum);
    });
    total += sum_of_lanes<T>(sum);
  }
  return total;
}

// Fills stats_N2 with the maximum of each row and its sum of exponentials; returns the mean loss.
template <typename T>
double forward_rows(const T* logits, const int64_t* targets, int64_t rows, int64_t classes, double* stats_N2) {
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const T* row = logits + n * classes;
      const T maximum = row_maximum(row, classes);
      stats_N2[2 * n] = maximum;
      stats_N2[2 * n + 1] = row_sum(row, classes, maximum);
    }
  });
  double total = 0;
  for (int64_t n = 0; n < rows; n++)
    total += std::log(stats_N2[2 * n + 1]) + (stats_N2[2 * n] - double(logits[n * classes + targets[n]]));
  return total / rows;
}

// grad = (softmax - onehot) * scale
template <typename T>
void backward_rows(const T* logits, const int64_t* targets, int64_t rows, int64_t classes, const double* stats_N2,
                   double scale, T* grad) {
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const T *row = logits + n * classes, maximum = T(stats_N2[2 * n]);
      const double sum = stats_N2[2 * n + 1];
      T* out = grad + n * classes;
      const T row_scale = T(scale / sum);
      for_vectors<T>(classes, [&](int64_t at, auto count) {
        store(out + at, Vector<T>(exp_of_nonpositive(load(row + at, count) - maximum) * row_scale), count);
      });
      // softmax - 1 as -(sum of the others) / sum: for a sure prediction the difference would be all rounding
      const Vector<T> at_target = load(row + targets[n], 1) - maximum;
      out[targets[n]] = T((double(exp_of_nonpositive(at_target)[0]) - sum) / sum * scale);
    }
  });
}

void check(const at::Tensor& logits, const at::Tensor& targets) {
  const int64_t classes = logits.size(1);
  const int64_t* target = targets.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < targets.size(0); n++)
    TORCH_CHECK_INDEX(target[n] >= 0 && target[n] < classes, "target ", target[n], " of row ", n,
                      " is not a class: there are ", classes);
}

std::tuple<at::Tensor, at::Tensor> cross_entropy(const at::Tensor& logits, const at::Tensor& targets) {
  const Input logits_in(logits), targets_in(targets);
  check(logits, targets_in.tensor);
  at::Tensor loss = at::empty({}, logits.options());
  at::Tensor stats_N2 = at::empty({logits.size(0), 2}, logits.options().dtype(at::kDouble));
  dispatch(logits, [&](auto type) {
    using T = decltype(type);
    *loss.mutable_data_ptr<T>() =
        T(forward_rows(logits_in.data<T>(), targets_in.data<int64_t>(), logits.size(0), logits.size(1),
                       stats_N2.mutable_data_ptr<double>()));
  });
  return {loss, stats_N2};
}

at::Tensor cross_entropy_backward(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& stats_N2,
                                  const at::Tensor& dloss) {
  const Input logits_in(logits), targets_in(targets), stats_in(stats_N2), dloss_in(dloss);
  at::Tensor dlogits = at::empty(logits.sizes(), logits.options());
  dispatch(logits, [&](auto type) {
    using T = decltype(type);
    backward_rows(logits_in.data<T>(), targets_in.data<int64_t>(), logits.size(0), logits.size(1),
                  stats_in.data<double>(), double(*dloss_in.data<T>()) / logits.size(0), dlogits.mutable_data_ptr<T>());
  });
  return dlogits;
}

}  // namespace
}  // namespace groundthink

TORCH_LIBRARY_FRAGMENT(groundthink, m) {
  m.def("cross_entropy(Tensor logits, Tensor targets) -> (Tensor loss, Tensor stats)");
  m.def("cross_entropy_backward(Tensor logits, Tensor targets, Tensor stats, Tensor dloss) -> Tensor dlogits");
}

TORCH_LIBRARY_IMPL(groundthink, CPU, m) {
  m.impl("cross_entropy", groundthink::cross_entropy);
  m.impl("cross_entropy_backward", groundthink::cross_entropy_backward);
}
