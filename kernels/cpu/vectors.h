// Vectors of one size for all kernels, in the compiler's own vector types: no sum and no choice between values is left
// to the optimiser, so NaN comes through and the order of every sum is written down.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace groundthink {

constexpr int64_t kVectorBytes = 64;

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <typename T>
inline Vector<T>& vector_at(T* address) {
  return *reinterpret_cast<Vector<T>*>(address);
}
template <typename T>
inline const Vector<T>& vector_at(const T* address) {
  return *reinterpret_cast<const Vector<T>*>(address);
}

// `count` numbers from memory of any alignment; the lanes after them hold `rest`.
template <typename T>
inline Vector<T> load(const T* address, int64_t count, T rest = 0) {
  Vector<T> vector;
  if (count < kLanes<T>)
    for (int64_t i = 0; i < kLanes<T>; i++) vector[i] = rest;
  std::memcpy(&vector, address, count * sizeof(T));
  return vector;
}
template <typename T>
inline void store(T* address, const Vector<T>& vector, int64_t count) {
  std::memcpy(address, &vector, count * sizeof(T));
}

// Calls visit(offset, count) for every vector of `size` numbers. In whole vectors `count` is a constant, and what it
// governs is resolved when compiling.
template <typename T, typename Visit>
inline void for_vectors(int64_t size, Visit visit) {
  int64_t at = 0;
  for (; size - at >= kLanes<T>; at += kLanes<T>) visit(at, std::integral_constant<int64_t, kLanes<T>>());
  if (at < size) visit(at, size - at);
}

// Halves the vector until 16 bytes are left: a chain of additions lane by lane would cost more than all the rest.
template <typename T>
inline T sum_of_lanes(Vector<T> vector) {
  typedef T Half __attribute__((vector_size(32)));
  typedef T Quarter __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &vector, sizeof(vector));
  const Half half = halves[0] + halves[1];
  Quarter quarters[2];
  std::memcpy(quarters, &half, sizeof(half));
  const Quarter quarter = quarters[0] + quarters[1];
  if constexpr (sizeof(T) == 4) return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
  return quarter[0] + quarter[1];
}

template <typename T>
inline T dot(const T* a, const T* b, int64_t size) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
  return sum;
}

// e^x for x <= 0, within 1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, and a Taylor polynomial for e^r. Below -87, where
// fp32 has no normal number for it, the result is 0. NaN stays NaN.
inline Vector<float> exp_of_nonpositive(Vector<float> x) {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  const Vector<float> zero = {};
  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const Vector<float> shifted = x * 1.44269504f + 12582912.0f;
  const Vector<float> n = shifted - 12582912.0f;
  // ln 2 in two parts, of which the first has so few digits that n times it is exact
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> sum = r * (1.0f / 5040) + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Bits power = (reinterpret_cast<const Bits&>(shifted) << 23) + 0x3f800000;
  return x < zero - 87.0f ? zero : sum * reinterpret_cast<const Vector<float>&>(power);
}
// fp64 is for measuring errors, not for speed.
inline Vector<double> exp_of_nonpositive(Vector<double> x) {
  for (int64_t i = 0; i < kLanes<double>; i++) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace groundthink
