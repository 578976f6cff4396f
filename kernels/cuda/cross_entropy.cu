// Mean cross entropy on a GPU: the forward pass reads the logits once, the backward pass reads them once and writes the
// gradient once, all in their own dtype; sums are fp32. One block takes one row.
//
//     loss_n = ln(others + e) + largest - x_target      e = exp(x_target - largest), others = sum over the other classes
//     dx_v   = exp(x_v - largest) / (others + e)        dx_target = -others / (others + e)
//
// The target is kept out of the sum: softmax - 1 of a sure prediction would be all rounding, and so would its loss.
// Writing the gradient already in the forward pass would save its second reading, a third of all traffic. It is not
// done: evaluation would pay for a gradient that nobody asks for, and the factor dloss, known only later, costs a pass
// over the gradient again.
#include "cross_entropy.h"

#include <cassert>
#include <cmath>
#include <cstring>

#include "tensor_cores.cuh"

namespace groundthink {
namespace {

constexpr int kMostThreads = 256;
// Vectors of 16 bytes that a thread has under way at once.
constexpr int kUnroll = 4;
constexpr float kLowest = -INFINITY;

template <typename T>
constexpr int kVector = 16 / sizeof(T);

// How a row is read: vectors from the first address that is a multiple of 16 on, and single elements before and after.
template <typename T>
struct Row {
  int before, vectors, singles;

  __device__ Row(const T* row, int classes) {
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
    before = past == 0 ? 0 : kVector<T> - past;
    if (before > classes) before = classes;
    vectors = (classes - before) / kVector<T>;
    singles = classes - vectors * kVector<T>;
  }
  // Class of the first element of a vector, and of a single element.
  __device__ int of_vector(int index) const { return before + index * kVector<T>; }
  __device__ int of_single(int index) const { return index < before ? index : index + vectors * kVector<T>; }
};

template <typename T>
__device__ __forceinline__ void load_vector(float* to, const T* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  T values[kVector<T>];
  memcpy(values, &bits, 16);
#pragma unroll
  for (int i = 0; i < kVector<T>; i++) to[i] = to_float(values[i]);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* to, const float* from) {
  T values[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; i++) values[i] = from_float<T>(from[i]);
  uint4 bits;
  memcpy(&bits, values, 16);
  *reinterpret_cast<uint4*>(to) = bits;
}

// e^x for x <= 0, within a few ulp where it counts: the error grows with -x. Below the normal numbers it is 0.
__device__ __forceinline__ float exp_of_nonpositive(float x) {
  constexpr float kLog2e = 1.4426950408889634f;
#ifdef GROUNDTHINK_EMULATED
  return std::exp2(x * kLog2e);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * kLog2e));
  return result;
#endif
}

// A sum of exponentials, kept as sum * exp(largest). NaN stays out of `largest` and meets the sum.
struct ExpSum {
  float largest = kLowest, sum = 0.0f;

  // What exponents are taken from: with nothing but -inf so far, 0 keeps -inf - largest from being NaN.
  __device__ float base() const { return largest == kLowest ? 0.0f : largest; }

  // Adds exp(x) of all but the one at `left_out`, if that is one of them; `largest` is over all.
  template <int kSize>
  __device__ void add(float (&x)[kSize], int left_out) {
    ExpSum next;
    next.largest = largest;
#pragma unroll
    for (int i = 0; i < kSize; i++) next.largest = fmaxf(next.largest, x[i]);
    if (0 <= left_out && left_out < kSize) {
#pragma unroll
      for (int i = 0; i < kSize; i++)
        if (i == left_out) x[i] = kLowest;
    }
    const float base = next.base();
    next.sum = sum * exp_of_nonpositive(largest - base);
#pragma unroll
    for (int i = 0; i < kSize; i++) next.sum += exp_of_nonpositive(x[i] - base);
    *this = next;
  }

  __device__ void merge(float other_largest, float other_sum) {
    ExpSum next;
    next.largest = fmaxf(largest, other_largest);
    const float base = next.base();
    next.sum = sum * exp_of_nonpositive(largest - base) + other_sum * exp_of_nonpositive(other_largest - base);
    *this = next;
  }
};

// Leaves in `stats`, for each row: what exponents are taken from, 1 / (others + e), others / (others + e).
template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_forward_kernel(const T* logits, const int64_t* targets, int classes, float* stats, float* losses) {
  DYNAMIC_SHARED(float, of_warps);
  const int thread = threadIdx.x, threads = blockDim.x;
  const T* const row = logits + static_cast<int64_t>(blockIdx.x) * classes;
  const int64_t given = targets[blockIdx.x];
  assert(0 <= given && given < classes && "cross_entropy: a target is no class");
  const int target = static_cast<int>(given);
  const Row<T> is(row, classes);

  ExpSum total;
  for (int first = thread; first < is.vectors; first += kUnroll * threads) {
    float x[kUnroll][kVector<T>];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int index = first + u * threads;
      if (index < is.vectors) {
        load_vector(x[u], row + is.of_vector(index));
      } else {
#pragma unroll
        for (int i = 0; i < kVector<T>; i++) x[u][i] = kLowest;
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) total.add(x[u], target - is.of_vector(first + u * threads));
  }
  if (thread < is.singles) {
    const int at = is.of_single(thread);
    float x[1] = {to_float(row[at])};
    total.add(x, target - at);
  }

#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    const float largest = __shfl_xor_sync(0xffffffffu, total.largest, by);
    total.merge(largest, __shfl_xor_sync(0xffffffffu, total.sum, by));
  }
  if (thread % 32 == 0) {
    of_warps[thread / 32 * 2] = total.largest;
    of_warps[thread / 32 * 2 + 1] = total.sum;
  }
  __syncthreads();
  if (thread != 0) return;
  for (int warp = 1; warp < threads / 32; warp++) total.merge(of_warps[warp * 2], of_warps[warp * 2 + 1]);

  const float base = total.base(), x_target = to_float(row[target]);
  const float e = exp_of_nonpositive(x_target - base), scale = 1.0f / (total.sum + e);
  // the largest is among the others, or else e = 1: the logarithm is of 1 and something that was not rounded to it
  losses[blockIdx.x] = log1pf(total.sum + (e - 1.0f)) + (total.largest - x_target);
  float* const of_row = stats + static_cast<int64_t>(blockIdx.x) * kCrossEntropyStats;
  of_row[0] = base;
  of_row[1] = scale;
  of_row[2] = total.sum * scale;
}

// One block adds up the losses of all rows, in one order always.
__global__ void __launch_bounds__(kMostThreads) cross_entropy_mean_kernel(const float* losses, int rows, float* loss) {
  DYNAMIC_SHARED(double, sums);
  const int thread = threadIdx.x;
  double sum = 0;
  for (int row = thread; row < rows; row += blockDim.x) sum += losses[row];
  sums[thread] = sum;
  __syncthreads();
#pragma unroll
  for (int half = kMostThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  if (thread == 0) *loss = static_cast<float>(sums[0] / rows);
}

template <typename T>
__global__ void __launch_bounds__(kMostThreads)
    cross_entropy_backward_kernel(const T* logits, const int64_t* targets, int classes, const float* stats,
                                  const float* dloss, float per_row, T* dlogits) {
  const int thread = threadIdx.x, threads = blockDim.x, target = static_cast<int>(targets[blockIdx.x]);
  const int64_t offset = static_cast<int64_t>(blockIdx.x) * classes;
  const T* const row = logits + offset;
  T* const to = dlogits + offset;
  const Row<T> is(row, classes);
  const float* const of_row = stats + static_cast<int64_t>(blockIdx.x) * kCrossEntropyStats;
  const float base = of_row[0], upstream = *dloss * per_row;
  const float scale = of_row[1] * upstream, at_target = -of_row[2] * upstream;

  for (int first = thread; first < is.vectors; first += kUnroll * threads) {
    float x[kUnroll][kVector<T>];
#pragma unroll
    for (int u = 0; u < kUnroll; u++)
      if (first + u * threads < is.vectors) load_vector(x[u], row + is.of_vector(first + u * threads));
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (first + u * threads >= is.vectors) break;
      const int at = is.of_vector(first + u * threads);
#pragma unroll
      for (int i = 0; i < kVector<T>; i++) x[u][i] = exp_of_nonpositive(x[u][i] - base) * scale;
      if (at <= target && target < at + kVector<T>) {
#pragma unroll
        for (int i = 0; i < kVector<T>; i++)
          if (at + i == target) x[u][i] = at_target;
      }
      store_vector(to + at, x[u]);
    }
  }
  if (thread < is.singles) {
    const int at = is.of_single(thread);
    to[at] = from_float<T>(at == target ? at_target : exp_of_nonpositive(to_float(row[at]) - base) * scale);
  }
}

// A warp at least, and no more threads than there are vectors.
template <typename T>
int threads_of(int classes) {
  const int vectors = (classes + kVector<T> - 1) / kVector<T>, warps = (vectors + 31) / 32;
  return 32 * warps < kMostThreads ? 32 * warps : kMostThreads;
}

// Calls `work` with a value of the type of the logits.
template <typename Work>
cudaError_t dispatch(Dtype values, int rows, int classes, Work work) {
  if (rows < 1 || classes < 1) return cudaErrorInvalidValue;
  switch (values) {
    case Dtype::fp32:
      return work(float());
    case Dtype::bf16:
      return work(bf16());
    case Dtype::fp16:
      return work(fp16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t cross_entropy_forward(Dtype values, int rows, int classes, const void* logits, const int64_t* targets,
                                  float* stats, float* losses, float* loss, cudaStream_t stream) {
  return dispatch(values, rows, classes, [&](auto type) {
    using T = decltype(type);
    const int threads = threads_of<T>(classes);
    LAUNCH(cross_entropy_forward_kernel<T>, rows, threads, threads / 32 * 2 * sizeof(float), stream,
           static_cast<const T*>(logits), targets, classes, stats, losses);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    LAUNCH(cross_entropy_mean_kernel, 1, kMostThreads, kMostThreads * sizeof(double), stream, losses, rows, loss);
    return cudaGetLastError();
  });
}

cudaError_t cross_entropy_backward(Dtype values, int rows, int classes, const void* logits, const int64_t* targets,
                                   const float* stats, const float* dloss, void* dlogits, cudaStream_t stream) {
  return dispatch(values, rows, classes, [&](auto type) {
    using T = decltype(type);
    LAUNCH(cross_entropy_backward_kernel<T>, rows, threads_of<T>(classes), 0, stream, static_cast<const T*>(logits),
           targets, classes, stats, dloss, 1.0f / rows, static_cast<T*>(dlogits));
    return cudaGetLastError();
  });
}

}  // namespace groundthink
